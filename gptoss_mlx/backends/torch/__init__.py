"""gpt-oss in PyTorch: the twin of model.py for one NVIDIA card, or for a CPU to compare with."""
