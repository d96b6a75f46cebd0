"""The PyTorch backend: gpt-oss on one NVIDIA card, or on a CPU to compare with."""
