"""Second half of an expert: down, bias, routing weight and the sum over the chosen experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops import moe_prefill
from gptoss_mlx.backends.mlx.ops.metal import (
    CONSTANT,
    Factory,
    MetalKernel,
    Template,
    Threads,
    largest,
)
from gptoss_mlx.backends.mlx.ops.mxfp4 import GROUP, Projection, project, random_projection
from gptoss_mlx.backends.mlx.ops.routing import Routing

ROWS = 96  # rows of a threadgroup
SIZES = (768, 512, 384, 256)  # threads of a threadgroup
TILE = 96 * GROUP  # inputs that rows.metal adds up in one sum
SUM_SIZES = (256, 128, 64)
KERNELS = (
    *("moe_decode_down", "moe_decode_down_each", "moe_decode_down_sum"),
    "moe_prefill_down",
)  # of metal/


Several: TypeAlias = Callable[[mx.array, Projection, Routing, mx.array | None], list[mx.array]]
"""`moe_down` of several tokens in any order; empty if the reference is to compute."""


class MoeDown(Protocol):
    """`moe_down`, or what computes the same."""

    def __call__(
        self, x: mx.array, down: Projection, routing: Routing, residual: mx.array | None = None
    ) -> mx.array: ...


def moe_down(
    x: mx.array, down: Projection, routing: Routing, residual: mx.array | None = None
) -> mx.array:
    """The experts' outputs, weighted and summed, and the residual added.

    x [tokens, k, intermediate], residual [tokens, hidden] of x's dtype -> [tokens, hidden], x's
    dtype. down: intermediate to hidden.
    """
    y = project(x, down, routing)
    y = (y * routing.weights[:, :, None]).sum(axis=1).astype(x.dtype)
    return y if residual is None else residual + y


def metal(factory: Factory | None = None, threads: Threads = largest) -> MoeDown:
    """As `moe_down`, with metal/moe_decode_down.metal for one token, moe_decode_down_each.metal and
    moe_decode_down_sum.metal for several, and moe_prefill_down.metal for tokens grouped by slot.
    """
    names = ["x", "blocks", "scales", "bias", "slots", "experts", "weights"]
    decode = MetalKernel("moe_decode_down", [*names, "residual"], ["out"], factory, threads, SIZES)
    several = _metal_for_several(factory, threads)
    prefill = MetalKernel("moe_prefill_down", names, ["out"], factory, threads, moe_prefill.SIZES)

    def run(
        x: mx.array, down: Projection, routing: Routing, residual: mx.array | None = None
    ) -> mx.array:
        tokens, k, inner = x.shape
        rows = down.blocks.shape[1]
        inputs = x, *down, routing.slots, routing.experts, routing.weights
        template: Template = {"T": x.dtype, "K": inner, "N": rows}
        if residual is None and moe_prefill.takes(down, routing):
            template |= {"TILES": moe_prefill.TILES, "SMALL": routing.slots.size < CONSTANT}
            if size := prefill.threads(template):
                return prefill(
                    *inputs,
                    template=template,
                    outputs=[((tokens, rows), x.dtype)],
                    **moe_prefill.division(tokens, down, size),
                )[0]
        elif not routing.grouped and tokens > 1 and inner <= TILE:
            if y := several(x, down, routing, residual):
                return y[0]
        elif not routing.grouped:
            template |= {"ACTIVE": k, "ROWS": ROWS, "RESIDUAL": residual is not None}
            if size := decode.threads(template):
                return decode(
                    *inputs,
                    x if residual is None else residual,
                    template=template,
                    threadgroups=(-(-rows // ROWS), tokens, 1),
                    threads=size,
                    outputs=[((tokens, rows), x.dtype)],
                )[0]
        return moe_down(x, down, routing, residual)

    return run


def _metal_for_several(factory: Factory | None, threads: Threads) -> Several:
    """As `metal`, for several tokens in any order; empty if the reference is to compute."""
    each = MetalKernel(
        *("moe_decode_down_each", ["x", "blocks", "scales", "slots"], ["products"]),
        *(factory, threads, SIZES),
    )
    total = MetalKernel(
        *("moe_decode_down_sum", ["products", "bias", "experts", "weights", "residual"], ["out"]),
        *(factory, threads, SUM_SIZES),
    )

    def several(
        x: mx.array, down: Projection, routing: Routing, residual: mx.array | None
    ) -> list[mx.array]:
        tokens, k, inner = x.shape
        rows = down.blocks.shape[1]
        small: Template = {"SMALL": routing.slots.size < CONSTANT}
        shape: Template = {"T": x.dtype, "K": inner, "N": rows, "ROWS": ROWS, **small}
        summed: Template = {"T": x.dtype, "N": rows, "ACTIVE": k, "RESIDUAL": residual is not None}
        summed |= small
        size, sum_size = each.threads(shape), total.threads(summed)
        if not (size and sum_size):
            return []
        (products,) = each(
            *(x, down.blocks, down.scales, routing.slots),
            template=shape,
            threadgroups=(-(-rows // ROWS), tokens * k, 1),
            threads=size,
            outputs=[((tokens, k, rows), mx.float32)],
        )
        return total(
            *(products, down.bias, routing.experts, routing.weights),
            x if residual is None else residual,
            template=summed,
            threadgroups=(-(-rows // sum_size), tokens, 1),
            threads=sum_size,
            outputs=[((tokens, rows), x.dtype)],
        )

    return several


def examples(dtype: mx.Dtype) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernels."""
    rows, inputs, experts = ROWS + 19, 96, 3
    down = random_projection(experts, rows, inputs, dtype)
    x = mx.random.normal((3, 2, inputs), key=mx.random.key(2)).astype(dtype)
    slots = mx.array([[2, 0], [0, 1], [1, 0]], mx.uint32)  # one, two and three tokens visit
    ids = mx.array([[1, 2], [2, 0], [0, 2]], mx.uint32)
    routing = Routing(slots, ids, mx.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]]))
    first = Routing(slots[:1], ids[:1], routing.weights[:1])
    yield x[:1], down, first
    yield x[:1], down, first, mx.ones((1, rows), dtype)
    yield x, down, routing
    yield x, down, routing, mx.random.normal((3, rows), key=mx.random.key(4)).astype(dtype)
    x, *others = moe_prefill.example(dtype, rows)
    yield x[:, None], *others
