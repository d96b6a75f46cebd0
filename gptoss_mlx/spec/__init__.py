"""The model's specification: config, rotary frequencies, recipes and sampling options."""
