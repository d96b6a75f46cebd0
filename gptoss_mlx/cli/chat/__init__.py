"""`gptoss-mlx chat`: a conversation in the terminal."""
