"""What a model does on an NVIDIA card: memory, speed, each kernel, every layer."""
