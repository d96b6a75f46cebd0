"""First half of an expert: gate and up in one product, then the clamped SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops import moe_prefill
from gptoss_mlx.backends.mlx.ops.metal import (
    CONSTANT,
    Factory,
    MetalKernel,
    Template,
    Threads,
    largest,
    many_cores,
    number,
)
from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection, project, random_projection
from gptoss_mlx.backends.mlx.ops.routing import Routing

ALPHA = 1.702
ROWS = 384  # rows of a threadgroup: the vector, read once for them, is 1 % of their bytes
MANY_CORES_ROWS = 192  # with 384, only 15 threadgroups an expert: a Max would wait for the last
SIZES = (512, 256, 128)  # threads of a threadgroup
MANY_CORES_SIZES = SIZES[1:]
KERNELS = ("moe_decode_gate_up", "moe_prefill_gate_up")  # of metal/


class MoeGateUp(Protocol):
    """`moe_gate_up`, or what computes the same."""

    def __call__(
        self, x: mx.array, gate_up: Projection, routing: Routing, limit: float
    ) -> mx.array: ...


def swiglu(gate: mx.array, up: mx.array, limit: float) -> mx.array:
    """min(gate, limit) * sigmoid(1.702 * gate) * (clip(up, -limit, limit) + 1).

    OpenAI, gpt-oss/torch/model.py, `swiglu`.
    """
    gate = mx.minimum(gate, limit)
    up = mx.clip(up, -limit, limit)
    return gate * mx.sigmoid(ALPHA * gate) * (up + 1)


def moe_gate_up(x: mx.array, gate_up: Projection, routing: Routing, limit: float) -> mx.array:
    """The activations of the chosen experts: [tokens, hidden] -> [tokens, k, intermediate]

    gate_up: hidden to 2 * intermediate; outputs 2i are gate, 2i + 1 up. limit: of `swiglu`.
    """
    y = project(x[:, None, :], gate_up, routing)
    activation = swiglu if mx.default_device() == mx.Device(mx.cpu) else _FUSED
    return activation(y[..., ::2], y[..., 1::2], limit)


# One kernel instead of nine. Not used on a CPU, where MLX would run a C++ compiler first.
_FUSED = mx.compile(swiglu, shapeless=True)


def metal(factory: Factory | None = None, threads: Threads = largest) -> MoeGateUp:
    """As `moe_gate_up`, with metal/moe_decode_gate_up.metal for tokens in any order and
    metal/moe_prefill_gate_up.metal for tokens grouped by slot.
    """
    names = ["x", "blocks", "scales", "bias", "slots", "experts", "limit"]
    group, sizes = (MANY_CORES_ROWS, MANY_CORES_SIZES) if many_cores() else (ROWS, SIZES)
    decode = MetalKernel("moe_decode_gate_up", names, ["out"], factory, threads, sizes)
    prefill = MetalKernel(
        "moe_prefill_gate_up", names, ["out"], factory, threads, moe_prefill.SIZES
    )

    def run(x: mx.array, gate_up: Projection, routing: Routing, limit: float) -> mx.array:
        tokens, k = routing.slots.shape
        rows = gate_up.blocks.shape[1]
        inputs = x, *gate_up, routing.slots, routing.experts, number(limit)
        template: Template = {"T": x.dtype, "K": x.shape[1], "N": rows}
        if moe_prefill.takes(gate_up, routing):
            template |= {"TILES": moe_prefill.TILES, "SMALL": routing.slots.size < CONSTANT}
            if size := prefill.threads(template):
                return prefill(
                    *inputs,
                    template=template,
                    outputs=[((tokens, 1, rows // 2), x.dtype)],
                    **moe_prefill.division(tokens, gate_up, size),
                )[0]
        elif not routing.grouped:
            template |= {"ACTIVE": k, "ROWS": group, "COUNT": 1 if tokens == 1 else 2}
            template |= {"SMALL": routing.slots.size < CONSTANT}
            if size := decode.threads(template):
                return decode(
                    *inputs,
                    template=template,
                    threadgroups=(-(-rows // group), tokens * k, 1),
                    threads=size,
                    outputs=[((tokens, k, rows // 2), x.dtype)],
                )[0]
        return moe_gate_up(x, gate_up, routing, limit)

    return run


def examples(dtype: mx.Dtype) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernels."""
    rows, inputs, experts = ROWS + 38, 96, 3
    x = mx.random.normal((3, inputs), key=mx.random.key(2)).astype(dtype)
    slots = mx.array([[2, 0], [0, 1], [1, 0]], mx.uint32)  # one, two and three tokens visit
    ids = mx.array([[1, 2], [2, 0], [0, 2]], mx.uint32)
    gate_up = random_projection(experts, rows, inputs, dtype)
    yield x[:1], gate_up, Routing(slots[:1], ids[:1], mx.ones((1, 2))), 7.0
    yield x, gate_up, Routing(slots, ids, mx.ones((3, 2))), 7.0
    yield *moe_prefill.example(dtype, rows), 7.0
