"""gpt-oss on a CPU: numpy, and the kernels of native/, called through ctypes."""
