"""Attention of one token over keys and values that lie in two parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import mlx.core as mx

from gptoss_mlx.kernels.metal import CONSTANT, Factory, MetalKernel, number

WHOLE = 1024  # tokens up to which one range is enough
RANGE = 512  # tokens a range has at least, beyond that
MOST_RANGES = 32
MOST_QUERIES = 16  # heads to a key head that the kernel keeps in registers
SPACE = 4096  # floats of weighted values in a threadgroup's memory, 16 KB


class DecodeAttention(Protocol):
    """`decode_attention`, or what computes the same."""

    def __call__(
        self,
        q: mx.array,
        arena: mx.array,
        held: int,
        page: mx.array,
        count: int,
        sinks: mx.array,
        scale: float,
    ) -> mx.array: ...


def decode_attention(
    q: mx.array,
    arena: mx.array,
    held: int,
    page: mx.array,
    count: int,
    sinks: mx.array,
    scale: float,
) -> mx.array:
    """One token's attention to the first tokens of both parts, `held` and `count` of them.

    q [heads, 1, head_dim]; arena and page [2, kv_heads, tokens, head_dim], keys and then values;
    sinks [heads]: logits of attention to nothing -> [1, heads * head_dim]
    """
    seen = mx.concatenate([arena[..., :held, :], page[..., :count, :]], axis=2)
    k, v = mx.split(seen, 2)
    y = mx.fast.scaled_dot_product_attention(q[None], k, v, scale=scale, sinks=sinks)
    return y.reshape(1, -1)


def metal(factory: Factory | None = None) -> DecodeAttention:
    """As `decode_attention`, with metal/decode_attention.metal, and decode_attention_merge.metal
    where the tokens are divided into ranges."""
    names = ["q", "arena", "held", "page", "count", "sinks", "scale"]
    attend = MetalKernel("decode_attention", names, ["y"], factory)
    merge = MetalKernel("decode_attention_merge", ["parts", "sinks"], ["y"], factory)

    def run(
        q: mx.array,
        arena: mx.array,
        held: int,
        page: mx.array,
        count: int,
        sinks: mx.array,
        scale: float,
    ) -> mx.array:
        heads, _, width = q.shape
        kv_heads = page.shape[1]
        if not _served(q, kv_heads):
            return decode_attention(q, arena, held, page, count, sinks, scale)
        ranges = _ranges(held + count)
        described: dict[str, mx.Dtype | int | bool] = {
            "T": q.dtype,
            "HEADS": heads,
            "HEAD_DIM": width,
        }
        whole, parts = ((1, heads * width), q.dtype), ((ranges, heads, width + 2), mx.float32)
        simds = min(8, SPACE // (heads // kv_heads * width))
        out = whole if ranges == 1 else parts
        (y,) = attend(
            *(q, arena, mx.array(held), page, mx.array(count), sinks, number(scale)),
            template=described
            | {"KV_HEADS": kv_heads, "SIMDS": simds, "SPLIT": ranges > 1, "Y": out[1]},
            threadgroups=(kv_heads, ranges, 1),
            threads=32 * simds,
            outputs=[out],
        )
        if ranges == 1:
            return y
        (y,) = merge(
            *(y, sinks),
            template=described | {"RANGES": ranges},
            threadgroups=(heads, 1, 1),
            threads=-(-width // 32) * 32,
            outputs=[whole],
        )
        return y

    return run


def _served(q: mx.array, kv_heads: int) -> bool:
    heads, tokens, width = q.shape
    return (
        tokens == 1
        and q.dtype in (mx.float32, mx.bfloat16)
        and width <= 128
        and width * q.itemsize % 16 == 0
        and heads // kv_heads <= MOST_QUERIES
        and q.size >= CONSTANT
    )


def _ranges(tokens: int) -> int:
    """Into how many the tokens are divided: a power of two, so that few kernels are compiled."""
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
        sinks = mx.arange(heads).astype(dtype)
        yield q, arena, held, page, count, sinks, width**-0.5
