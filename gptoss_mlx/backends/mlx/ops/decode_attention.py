"""Decode attention: one token of each of several sequences over their keys and values.

A sequence's keys and values are in two buffers, an arena and a page. Where it has many tokens, they
are divided into ranges, computed separately and then merged (split-KV).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.metal import (
    CONSTANT,
    DECODED,
    SIMDGROUP,
    Factory,
    MetalKernel,
    Template,
    Threads,
    largest,
    number,
    padded,
)
from gptoss_mlx.backends.mlx.ops.place import WHOLE, Place, Spot, places

QUERIES = 8  # query heads of 64 elements to a key head: what a lane has registers for
SIZES = (256, 128, 64)  # threads of a threadgroup; a simdgroup's weighted values take 2 KB
MERGE_SIZES = (128, 64, 32)
KERNELS = ("decode_attention", "decode_attention_merge")  # of metal/


class DecodeAttention(Protocol):
    """`decode_attention`, or what computes the same."""

    def __call__(
        self,
        q: mx.array,
        arenas: Sequence[mx.array],
        pages: mx.array,
        place: Place,
        sinks: mx.array,
        scale: float,
    ) -> mx.array: ...


def decode_attention(
    q: mx.array,
    arenas: Sequence[mx.array],
    pages: mx.array,
    place: Place,
    sinks: mx.array,
    scale: float,
) -> mx.array:
    """Attention over the first tokens of each arena and page, as many as `place` says.

    q [heads, sequences, head_dim]; arenas: of each sequence [2, kv_heads, any, head_dim], keys and
    then values, or anything where none of it is read; pages [sequences, 2, kv_heads, any,
    head_dim]; sinks [heads]: logits that only add to the softmax's denominator
    -> [sequences, heads * head_dim]
    """
    rows = []
    for i, (arena, spot) in enumerate(zip(arenas, place.spots, strict=True)):
        seen = pages[i, ..., : spot.seen, :]
        if spot.held:
            seen = mx.concatenate([arena[..., : spot.held, :], seen], axis=2)
        k, v = mx.split(seen, 2)
        y = mx.fast.scaled_dot_product_attention(
            q[None, :, i : i + 1], k, v, scale=scale, sinks=sinks
        )
        rows.append(y.reshape(1, -1))
    return mx.concatenate(rows)


def metal(factory: Factory | None = None, threads: Threads = largest) -> DecodeAttention:
    """As `decode_attention`, with metal/decode_attention.metal for up to DECODED sequences, and
    decode_attention_merge.metal where the tokens of one are divided into ranges."""
    attends = {
        count: MetalKernel(
            "decode_attention", _names(count), ["y"], factory, threads, SIZES, _prologue(count)
        )
        for count in (1, 2, 4, DECODED)
    }
    merge = MetalKernel(
        *("decode_attention_merge", ["parts", "sinks", "places", "layer"], ["y"]),
        *(factory, threads, MERGE_SIZES),
    )

    def run(
        q: mx.array,
        arenas: Sequence[mx.array],
        pages: mx.array,
        place: Place,
        sinks: mx.array,
        scale: float,
    ) -> mx.array:
        heads, sequences, width = q.shape
        kv_heads = pages.shape[2]
        ranges = max(spot.ranges for spot in place.spots)
        described: Template = {"T": q.dtype, "HEADS": heads, "HEAD_DIM": width}
        whole = (sequences, heads * width), q.dtype
        out = whole if ranges == 1 else ((sequences, ranges, heads, width + 2), mx.float32)
        count = padded(sequences)
        template = described | {"KV_HEADS": kv_heads, "SPLIT": ranges > 1, "Y": out[1]}
        template |= {"ARENAS": count}
        size = attends[count].threads(template) if _served(q, kv_heads) else 0
        merged = merge.threads(described) if size and ranges > 1 else SIMDGROUP
        if size == 0 or merged == 0:
            return decode_attention(q, arenas, pages, place, sinks, scale)
        (y,) = attends[count](
            *(q, *arenas, *[arenas[0]] * (count - sequences), pages),
            *(place.table, place.layer, sinks, number(scale)),
            template=template,
            threadgroups=(kv_heads, ranges, sequences),
            threads=size,
            outputs=[out],
        )
        if ranges == 1:
            return y
        (y,) = merge(
            *(y, sinks, place.table, place.layer),
            template=described,
            threadgroups=(heads, sequences, 1),
            threads=merged,
            outputs=[whole],
        )
        return y

    return run


def _names(arenas: int) -> list[str]:
    """The kernel's inputs."""
    each = [f"arena{i}" for i in range(arenas)]
    return ["q", *each, "pages", "places", "layer", "sinks", "scale"]


def _prologue(arenas: int) -> str:
    """The kernel's first lines: the arena of a threadgroup's sequence, and its room in tokens."""
    others = range(arenas - 1)
    arena = "".join(f"sequence == {i} ? arena{i} : " for i in others) + f"arena{arenas - 1}"
    room = "".join(f"sequence == {i} ? arena{i}_shape[2] : " for i in others)
    return (
        "const int sequence = threadgroup_position_in_grid.z;\n"
        f"const device T* arena = {arena};\n"
        f"const int arena_room = {room}arena{arenas - 1}_shape[2];\n"
    )


def _served(q: mx.array, kv_heads: int) -> bool:
    heads, sequences, width = q.shape
    return (
        sequences <= DECODED
        and q.dtype in (mx.float32, mx.bfloat16)
        and width % 4 == 0
        and heads // kv_heads * -(-width // 64) <= QUERIES
        and q.size >= CONSTANT
    )


def examples(dtype: mx.Dtype) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of both kernels."""
    for heads, kv_heads, width, held in (
        (8, 1, 64, [0]),
        (6, 2, 32, [WHOLE + 1]),
        (6, 2, 32, [3, 2 * WHOLE, 0]),
    ):
        arenas = [_random((2, kv_heads, tokens + 7, width), dtype) for tokens in held]
        pages = _random((len(held), 2, kv_heads, 64, width), dtype)
        q = _random((heads, len(held), width), dtype)
        spots = [[Spot(0, 0, 9), Spot(tokens, 4 + i, 5 + i)] for i, tokens in enumerate(held)]
        place = places(held, spots)[1]
        yield q, arenas, pages, place, mx.arange(heads).astype(dtype), width**-0.5


def _random(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(shape[-2])).astype(dtype)
