"""The grid of the experts' prefill kernels: many tokens, sorted by slot, by their slots' matrices.

It is the same for both halves of an expert; the kernels' side is metal/moe_prefill.metal.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.metal import CONSTANT, SIMDGROUP
from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection, random_projection
from gptoss_mlx.backends.mlx.ops.routing import Routing

TILE_ROWS = 32  # tokens of one slot that a threadgroup takes
OUTPUTS = 32  # outputs of a simdgroup
SIZES = (256, 128)  # threads of a threadgroup: x is read once for 256 outputs
TILES = 4  # tiles next to each other with the same outputs: weights are still in a cache


def takes(projection: Projection, routing: Routing) -> bool:
    """Whether the prefill kernels serve a call.

    That does not depend on its number of tokens: how many others there are must not change a
    token's result in any bit.
    """
    one_each = routing.slots.shape[1] == 1
    return routing.grouped and one_each and projection.scales.size >= CONSTANT


def division(tokens: int, projection: Projection, threads: int) -> dict[str, Any]:
    """The threadgroups, and their threads, for a projection of that many routed tokens.

    A tile's number is its slot + its first token / TILE_ROWS, so that `tiles` bounds the numbers.
    """
    slots, outputs = projection.blocks.shape[:2]
    tiles = slots + (tokens - 1) // TILE_ROWS
    across = -(-outputs // (OUTPUTS * threads // SIMDGROUP))
    return {
        "threadgroups": (across * TILES, -(-tiles // TILES), 1),
        "threads": threads,
    }


def example(dtype: mx.Dtype, outputs: int) -> tuple[mx.array, Projection, Routing]:
    """x [tokens, inputs] and the rest of a small call that reaches every part of a kernel: slots
    with one tile, none and several, a whole and a shorter part of the inputs.
    """
    inputs, experts = 224, 4
    projection = random_projection(experts - 1, outputs, inputs, dtype, experts)
    slots = mx.array([0] * 3 + [2] * 38, mx.uint32)[:, None]
    x = mx.random.normal((slots.size, inputs), key=mx.random.key(2)).astype(dtype)
    weights = mx.random.uniform(shape=slots.shape, key=mx.random.key(3)).astype(dtype)
    return x, projection, Routing(slots, slots + 1, weights, grouped=True)
