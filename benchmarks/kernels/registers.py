"""Registers that each Metal kernel takes of a lane at gpt-oss-20b's sizes, estimated without a GPU.

How, and how far to trust it: tests/support/metal_emulator/registers.py. Needs what the emulator
needs: x86-64 Linux, clang-19, lld-19.

    python -m benchmarks.kernels.registers
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click
import mlx.core as mx
from rich.console import Console
from rich.table import Table

from benchmarks.kernels.pieces import Sizes
from gptoss_mlx.backends.mlx.ops import moe_prefill
from gptoss_mlx.backends.mlx.ops.choice import Kernels, metal_kernels
from gptoss_mlx.backends.mlx.ops.decode_qkv import Heads
from gptoss_mlx.backends.mlx.ops.matrix import Matrix, Norm
from gptoss_mlx.backends.mlx.ops.metal import DECODED, Factory
from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection
from gptoss_mlx.backends.mlx.ops.place import WHOLE, Spot, places
from gptoss_mlx.backends.mlx.ops.routing import Routing
from gptoss_mlx.spec.config import QuantizationSpec
from tests.support.metal_emulator import available
from tests.support.metal_emulator.registers import FILE, Counted

EIGHT = QuantizationSpec(8, 64, "affine")


@dataclass(frozen=True)
class Row:
    """Of a kernel: threads of its threadgroup, and as `Registers`."""

    kernel: str
    what: str
    threads: int
    used: int
    spilled: int


def rows(
    dtype: mx.Dtype, s: Sizes | None = None, tokens: Sequence[int] = (1, DECODED)
) -> Iterator[Row]:
    """A row for each kernel and each of the calls that differ most. tokens: of projections."""
    s = s or Sizes()
    counted, threads = Counted(), list[int]()

    def factory(**named: object) -> Factory:
        kernel = counted.metal_kernel(**named)  # type: ignore[arg-type]

        def run(**call: object) -> list[mx.array]:
            threads.append(call["threadgroup"][0])  # type: ignore[index]
            return kernel(**call)

        return run

    for what in _calls(metal_kernels(factory), s, dtype, tokens):
        for (name, found), size in zip(counted.found, threads, strict=True):
            yield Row(name, what, size, found.used, found.spilled)
        counted.found.clear()
        threads.clear()


def _calls(kernels: Kernels, s: Sizes, dtype: mx.Dtype, counts: Sequence[int]) -> Iterator[str]:
    """Calls the kernels; after each, what was called."""
    many = mx.zeros((DECODED, s.hidden), dtype)
    norm, width = Norm(many[0], 1e-5), s.heads * s.head_dim
    heads = Heads(s.heads, s.kv_heads, s.head_dim)
    periods = mx.zeros((s.head_dim // 2,))
    place = places([2 * WHOLE], [[Spot(2 * WHOLE, 0, 1), Spot(0, 5, 9)]])
    kv = [mx.zeros((2, s.kv_heads, n, s.head_dim), dtype) for n in (2 * WHOLE + 64, 64)]
    for tokens in counts:
        x, count = many[:tokens], f"{tokens} token{'s' * (tokens > 1)}"
        for form in ("dense", "8 bits"):

            def matrix(outputs: int, inputs: int, form: str = form) -> Matrix:
                if form == "dense":
                    return Matrix(mx.zeros((outputs, inputs), dtype))
                scales = mx.zeros((outputs, inputs // 64), dtype)
                return Matrix(mx.zeros((outputs, inputs // 4), mx.uint32), scales, scales, EIGHT)

            qkv = width + 2 * s.kv_heads * s.head_dim
            bias = mx.zeros((qkv,), dtype)
            page = kv[1][None] if tokens == 1 else None
            kernels.decode_qkv(
                x, [(matrix(qkv, s.hidden), bias)], norm, heads, periods, place[1], page
            )
            yield f"{form}, {count}"
            y = mx.zeros((tokens, width), dtype)
            kernels.quantized_matvec(y, matrix(s.hidden, width), many[0], None, x)
            yield f"o, {form}, {count}"
            kernels.quantized_matvec(
                x, matrix(s.vocabulary, s.hidden), None, norm, None, mx.float32
            )
            yield f"lm_head, {form}, {count}"
            kernels.decode_router(x, matrix(s.experts, s.hidden), many[0, : s.experts], norm)
            yield f"{form}, {count}"
    kernels.router_topk(mx.zeros((1, s.experts)), s.active)
    yield "1 token"
    q, sinks = mx.zeros((s.heads, 1, s.head_dim), dtype), mx.zeros((s.heads,), dtype)
    for where, what in zip(place, ("several ranges", "one range"), strict=True):
        kernels.decode_attention(q, kv[:1], kv[1][None], where, sinks, 0.125)
        yield what
    yield from _experts(kernels, s, dtype)


def _experts(kernels: Kernels, s: Sizes, dtype: mx.Dtype) -> Iterator[str]:
    def bank(outputs: int, inputs: int) -> Projection:
        shape = s.experts, outputs, inputs // 8
        scales = mx.zeros((s.experts, outputs, inputs // 32), mx.uint8)
        return Projection(mx.zeros(shape, mx.uint32), scales, mx.zeros((s.experts, outputs), dtype))

    up, down = bank(2 * s.inner, s.hidden), bank(s.hidden, s.inner)
    x, ids = mx.zeros((1, s.hidden), dtype), mx.zeros((1, s.active), mx.uint32)
    routing = Routing(ids, ids, mx.zeros((1, s.active)))
    h = kernels.moe_gate_up(x, up, routing, 7.0)
    yield "1 token"
    kernels.moe_down(h, down, routing, residual=x)
    yield "1 token"
    two, ids = mx.zeros((2, s.hidden), dtype), mx.zeros((2, s.active), mx.uint32)
    routing = Routing(ids, ids, mx.zeros((2, s.active)))
    h = kernels.moe_gate_up(two, up, routing, 7.0)
    yield "2 tokens"
    kernels.moe_down(h, down, routing, residual=two)
    yield "2 tokens"
    visits = moe_prefill.TILE_ROWS * s.experts
    slots = mx.zeros((visits, 1), mx.uint32)
    routing = Routing(slots, slots, mx.zeros((visits, 1)), grouped=True)
    h = kernels.moe_gate_up(mx.zeros((visits, s.hidden), dtype), up, routing, 7.0)
    yield "a prompt"
    kernels.moe_down(h, down, routing)
    yield "a prompt"


@click.command(help=__doc__)
def main() -> None:
    if reason := available():
        raise click.ClickException(reason)
    table = Table(title=f"registers of a lane, estimated; {FILE} at most")
    for heading in ("kernel", "call", "threads", "registers", f"beyond {FILE}"):
        table.add_column(heading)
    found = list(rows(mx.bfloat16))
    for row in found:
        table.add_row(row.kernel, row.what, str(row.threads), str(row.used), str(row.spilled))
    Console(width=110).print(table)
    print(json.dumps({"mlx": mx.__version__, "registers": [vars(row) for row in found]}))


if __name__ == "__main__":
    main()
