"""Segments of a KV cache as bytes on the host, and back: here they are there already.

A segment's arrays: keys, values and in 8 bits scales and biases of all full-attention layers, and
the rings of all sliding ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.cpu.cache import Layers
from gptoss_mlx.backends.protocol import Layout
from gptoss_mlx.backends.state import Copied
from gptoss_mlx.files.shard import NUMPY

Array: TypeAlias = NDArray[Any]

_NAMES = {"float32": "F32", "bfloat16": "BF16", "uint8": "U8"}


def layout(layers: Layers, tokens: int) -> Layout:
    """What a segment of so many tokens consists of."""
    pages, full = layers.pages, len(layers.full)
    named, heads = _NAMES[pages.type], pages.kv_heads
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    if full:
        found["keys"] = named, (full, heads, pages.head_dim, tokens)
        found["values"] = named, (full, heads, tokens, pages.width)
        if pages.type == "uint8":
            found["scales_biases"] = "F32", (full, 4, heads, tokens)
    found["rings"] = "U8", (len(layers.sliding), layers.ring.nbytes)
    return found


def to_host(segment: Copied[Array]) -> list[NDArray[np.uint8]]:
    """The bytes of each array, its own, not a copy."""
    return [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in segment.arrays]


def from_host(
    start: int, end: int, arrays: Sequence[NDArray[np.uint8]], layout: Layout
) -> Copied[Array]:
    """The segment with these bytes. Raises ValueError where they do not fit the layout."""
    made = [
        np.frombuffer(data.tobytes(), NUMPY[dtype]).reshape(shape)
        for data, (dtype, shape) in zip(arrays, layout.values(), strict=True)
    ]
    return Copied(start, end, tuple(made[:-1]), tuple(made[-1:]), ahead=True)
