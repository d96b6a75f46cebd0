"""Tests of the kernels, one module each."""
