"""Triton kernels, one file per operation, with the signatures of their references in reference.py.

A file has the kernels, the function that launches them, and `examples(dtype, device)`, arguments of
small calls that reach every part of them. No launch waits for the device, so that all can be
captured in a CUDA graph.
"""
