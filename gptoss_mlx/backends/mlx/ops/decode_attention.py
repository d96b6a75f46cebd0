"""Decode attention: one token over keys and values in two buffers, an arena and a page.

Where there are many tokens, they are divided into ranges, computed separately and then merged
(split-KV).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.metal import (
    CONSTANT,
    SIMDGROUP,
    Factory,
    MetalKernel,
    Template,
    Threads,
    largest,
    number,
)
from gptoss_mlx.backends.mlx.ops.place import Place, Spot, places

WHOLE = 1024  # tokens up to which one range is used
RANGE = 512  # tokens of a range at most, beyond that and until there are MOST_RANGES
MOST_RANGES = 32
QUERIES = 8  # query heads of 64 elements to a key head: what a lane has registers for
SIZES = (256, 128, 64)  # threads of a threadgroup; a simdgroup's weighted values take 2 KB
MERGE_SIZES = (128, 64, 32)
KERNELS = ("decode_attention", "decode_attention_merge")  # of metal/


class DecodeAttention(Protocol):
    """`decode_attention`, or what computes the same."""

    def __call__(
        self,
        q: mx.array,
        arena: mx.array,
        page: mx.array,
        place: Place,
        sinks: mx.array,
        scale: float,
    ) -> mx.array: ...


def decode_attention(
    q: mx.array, arena: mx.array, page: mx.array, place: Place, sinks: mx.array, scale: float
) -> mx.array:
    """Attention of one token over the first tokens of arena and page, as many as `place` says.

    q [heads, 1, head_dim]; arena and page [2, kv_heads, tokens, head_dim], keys and then values;
    sinks [heads]: logits that only add to the softmax's denominator -> [1, heads * head_dim]
    """
    held, _, count = place.spot
    seen = mx.concatenate([arena[..., :held, :], page[..., :count, :]], axis=2)
    k, v = mx.split(seen, 2)
    y = mx.fast.scaled_dot_product_attention(q[None], k, v, scale=scale, sinks=sinks)
    return y.reshape(1, -1)


def metal(factory: Factory | None = None, threads: Threads = largest) -> DecodeAttention:
    """As `decode_attention`, with metal/decode_attention.metal, and decode_attention_merge.metal
    where the tokens are divided into ranges."""
    names = ["q", "arena", "page", "places", "layer", "sinks", "scale"]
    attend = MetalKernel("decode_attention", names, ["y"], factory, threads, SIZES)
    merge = MetalKernel(
        "decode_attention_merge", ["parts", "sinks"], ["y"], factory, threads, MERGE_SIZES
    )

    def run(
        q: mx.array, arena: mx.array, page: mx.array, place: Place, sinks: mx.array, scale: float
    ) -> mx.array:
        heads, _, width = q.shape
        kv_heads = page.shape[1]
        ranges = _ranges(place.spot.held + place.spot.seen)
        described: Template = {"T": q.dtype, "HEADS": heads, "HEAD_DIM": width}
        whole, parts = ((1, heads * width), q.dtype), ((ranges, heads, width + 2), mx.float32)
        out = whole if ranges == 1 else parts
        template = described | {"KV_HEADS": kv_heads, "SPLIT": ranges > 1, "Y": out[1]}
        size = attend.threads(template) if _served(q, kv_heads) else 0
        merged = merge.threads(described) if size and ranges > 1 else SIMDGROUP
        if size == 0 or merged == 0:
            return decode_attention(q, arena, page, place, sinks, scale)
        (y,) = attend(
            *(q, arena, page, place.table, place.row, sinks, number(scale)),
            template=template,
            threadgroups=(kv_heads, ranges, 1),
            threads=size,
            outputs=[out],
        )
        if ranges == 1:
            return y
        (y,) = merge(
            *(y, sinks),
            template=described,
            threadgroups=(heads, 1, 1),
            threads=merged,
            outputs=[whole],
        )
        return y

    return run


def _served(q: mx.array, kv_heads: int) -> bool:
    heads, tokens, width = q.shape
    return (
        tokens == 1
        and q.dtype in (mx.float32, mx.bfloat16)
        and width % 4 == 0
        and heads // kv_heads * -(-width // 64) <= QUERIES
        and q.size >= CONSTANT
    )


def _ranges(tokens: int) -> int:
    """The number of ranges that the tokens are divided into."""
    if tokens <= WHOLE:
        return 1
    return min(MOST_RANGES, 1 << (-(-tokens // RANGE) - 1).bit_length())


def examples(dtype: mx.Dtype) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of both kernels."""
    for heads, kv_heads, width, held, count in ((8, 1, 64, 0, 5), (6, 2, 32, WHOLE + 1, 33)):
        arena, page = (
            mx.random.normal((2, kv_heads, tokens, width), key=mx.random.key(tokens)).astype(dtype)
            for tokens in (held + 7, 64)
        )
        q = mx.random.normal((heads, 1, width), key=mx.random.key(heads)).astype(dtype)
        place = places(held, [Spot(0, 0, 9), Spot(held, count - 1, count)])[1]
        yield q, arena, page, place, mx.arange(heads).astype(dtype), width**-0.5
