"""x W^T for a dense W: computed by MLX, but on a CPU under Linux by numpy.

MLX's wheels for Linux carry the reference BLAS, one thread and no SIMD: 24 ms where numpy's
OpenBLAS takes 1.5 ms for one token through [5760, 2880] in float32, and far more in a prefill.
numpy reads MLX's arrays in place; the price is to wait for x.
"""

from __future__ import annotations

import sys

import mlx.core as mx
import numpy as np


def matmul(x: mx.array, weight: mx.array) -> mx.array:
    """x [tokens, inputs], weight [outputs, inputs] -> [tokens, outputs], all of one dtype."""
    if sys.platform == "linux" and x.dtype == mx.float32 and _on_cpu():
        return mx.array(np.asarray(x) @ np.asarray(weight).T)
    return x @ weight.T


def _on_cpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.cpu))
