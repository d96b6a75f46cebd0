"""MXFP4 as MLX has it: 32 four-bit floats share one power-of-two scale."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.routing import Routing

GROUP = 32  # values to a scale


class Projection(NamedTuple):
    """One projection of a layer's experts: the matrices of those that have a slot, every bias.

    blocks  [slots, outputs, inputs / 8] uint32, eight codes to a word
    scales  [slots, outputs, inputs / 32] uint8
    bias    [experts, outputs]
    """

    blocks: mx.array
    scales: mx.array
    bias: mx.array


def project(x: mx.array, projection: Projection, routing: Routing) -> mx.array:
    """The chosen experts' projections, with bias.

    x [tokens, k or 1, inputs] -> [tokens, k, outputs]
    """
    y = mx.gather_qmm(
        x[:, :, None, :],
        projection.blocks,
        projection.scales,
        rhs_indices=routing.slots,
        transpose=True,
        group_size=GROUP,
        bits=4,
        mode="mxfp4",
        sorted_indices=routing.grouped,
    )
    return y[:, :, 0, :] + projection.bias[routing.experts]


def random_projection(
    slots: int, outputs: int, inputs: int, dtype: mx.Dtype, experts: int | None = None
) -> Projection:
    """A projection, always the same, with every code and scales of 2^-7 to 2^-2.

    experts: that many biases of `dtype`; by default as many as slots.
    """
    codes, exponents = mx.random.split(mx.random.key(0))
    blocks = mx.random.randint(0, 256, (slots, outputs, inputs // 2), mx.uint8, key=codes)
    scales = mx.random.randint(120, 126, (slots, outputs, inputs // GROUP), mx.uint8, key=exponents)
    bias = mx.random.normal((experts or slots, outputs), key=mx.random.key(1)).astype(dtype)
    return Projection(blocks.view(mx.uint32), scales, bias)
