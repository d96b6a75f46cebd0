"""What gpt-oss is: its config, rotary frequencies, recipes and sampling options."""
