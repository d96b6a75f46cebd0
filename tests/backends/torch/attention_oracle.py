"""Attention with sinks in float64, one query at a time, and what the tests of it share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
"""Relative L2. Of bfloat16 the weights and the result are rounded, 2^-9 of each at most."""

Array = NDArray[np.float64]


def numbers(x: torch.Tensor) -> Array:
    return x.double().numpy()


def one_query(q: Array, keys: Array, values: Array, sinks: Array, scale: float) -> Array:
    """q [heads, d], keys and values [kv_heads, keys, d], sinks [heads] -> [heads * d]"""
    group = len(q) // len(keys)
    y = np.empty_like(q)
    for head, sink in enumerate(sinks):
        logits = scale * keys[head // group] @ q[head]
        top = max(logits.max(initial=-1e300), sink)
        weights = np.exp(logits - top)
        y[head] = weights @ values[head // group] / (weights.sum() + np.exp(sink - top))
    return y.reshape(-1)


def off(found: torch.Tensor, expected: Array) -> float:
    """Relative L2; not a number where something found is not."""
    return float(np.linalg.norm(numbers(found) - expected) / np.linalg.norm(expected))


def random(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
