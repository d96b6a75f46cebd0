"""Segments of a KV cache as bytes on the host, and back.

A segment's arrays: keys and values of all full-attention layers, stacked (of a quantized cache
codes, scales and biases), and then a ring of each sliding layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.cache import kv_group
from gptoss_mlx.backends.protocol import Layout
from gptoss_mlx.backends.state import Copied
from gptoss_mlx.spec.config import ModelConfig

_DTYPES = {"BF16": mx.bfloat16, "F32": mx.float32, "U32": mx.uint32}
_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}


def layout(config: ModelConfig, dtype: mx.Dtype, kv_bits: int | None, tokens: int) -> Layout:
    """What a segment of so many tokens consists of. dtype: the compute dtype."""
    layers = config.num_hidden_layers
    sliding = [i for i in range(layers) if config.is_sliding(i)]
    named = next(name for name, known in _DTYPES.items() if known == dtype)
    heads, width = config.num_key_value_heads, config.head_dim
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    if len(sliding) < layers:
        stacked = (layers - len(sliding), 2, heads, tokens)
        if kv_bits is None:
            found["keys_values"] = named, (*stacked, width)
        else:
            groups = width // kv_group(width)
            found["codes"] = "U32", (*stacked, width * kv_bits // 32)
            found |= {part: ("F32", (*stacked, groups)) for part in ("scales", "biases")}
    ring = named, (1, 2, heads, config.sliding_window, width)
    return found | {f"ring.{i}": ring for i in sliding}


def to_host(segment: Copied[mx.array]) -> list[NDArray[np.uint8]]:
    """The bytes of each array. On a CPU and on a Mac they are the array's own, not a copy."""
    bits = [array.view(_BITS[array.dtype.size]) for array in segment.arrays]
    mx.eval(bits)
    return [np.asarray(array).reshape(-1).view(np.uint8) for array in bits]


def from_host(
    start: int, end: int, arrays: Sequence[NDArray[np.uint8]], layout: Layout
) -> Copied[mx.array]:
    """The segment with these bytes. Raises ValueError where they do not fit the layout."""
    made = list(_made(arrays, layout))
    mx.eval(made)
    full = sum(not name.startswith("ring.") for name in layout)
    return Copied(start, end, tuple(made[:full]), tuple(made[full:]), ahead=True)


def _made(arrays: Sequence[NDArray[np.uint8]], layout: Layout) -> Iterator[mx.array]:
    for data, (dtype, shape) in zip(arrays, layout.values(), strict=True):
        bits = data.view(np.uint16 if dtype == "BF16" else np.uint32).reshape(shape)
        yield mx.array(bits).view(_DTYPES[dtype])
