"""Tests of the PyTorch backend, one module each; kernels run in Triton's interpreter."""
