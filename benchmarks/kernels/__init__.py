"""What the Metal kernels cost, counted without a GPU."""
