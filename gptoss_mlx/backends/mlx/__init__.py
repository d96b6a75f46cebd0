"""gpt-oss in MLX, with Metal kernels on a Mac's GPU."""
