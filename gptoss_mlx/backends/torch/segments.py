"""Segments of a KV cache as bytes on the host, and back.

A segment's arrays: the arenas of all full-attention layers, and the rings of all sliding ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gptoss_mlx.backends.protocol import Layout
from gptoss_mlx.backends.state import Copied
from gptoss_mlx.backends.torch.cache import Cache

_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def layout(cache: Cache, tokens: int) -> Layout:
    """What a segment of so many tokens consists of."""
    named = _NAMES[cache.arenas.dtype]
    full, _, *heads, _, width = cache.arenas.shape
    sliding, _, *_, window, _ = cache.rings.shape
    return {
        "keys_values": (named, (full, *heads, tokens, width)),
        "rings": (named, (sliding, *heads, window, width)),
    }


def to_host(segment: Copied[torch.Tensor]) -> list[NDArray[np.uint8]]:
    """The bytes of each array; on a CPU its own, not a copy."""
    return [tensor.cpu().flatten().view(torch.uint8).numpy() for tensor in segment.arrays]


def from_host(
    start: int, end: int, arrays: Sequence[NDArray[np.uint8]], cache: Cache
) -> Copied[torch.Tensor]:
    """The segment with these bytes. Raises RuntimeError where they do not fit the layout."""
    kept, rings = (
        torch.from_numpy(data.copy()).view(cache.arenas.dtype).reshape(shape).to(cache.rings.device)
        for data, (_, shape) in zip(arrays, layout(cache, end - start).values(), strict=True)
    )
    return Copied(start, end, (kept,), (rings,), ahead=True)
