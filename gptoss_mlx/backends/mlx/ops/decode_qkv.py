"""Attention's queries, keys and values for a few tokens: norm, projection, bias and RoPE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.matrix import (
    SIZES,
    SUMS,
    Matrix,
    Norm,
    inputs,
    product,
    random_matrix,
    supported,
)
from gptoss_mlx.backends.mlx.ops.matrix import template as described
from gptoss_mlx.backends.mlx.ops.metal import (
    CONSTANT,
    Factory,
    MetalKernel,
    Threads,
    largest,
    number,
    padded,
)
from gptoss_mlx.backends.mlx.ops.place import Place, Spot, anywhere, places
from gptoss_mlx.spec.config import QuantizationSpec

ROWS = 64  # rows of a threadgroup, or one head where heads are larger
KERNELS = ("decode_qkv",)  # of metal/


class Heads(NamedTuple):
    """Numbers of heads and their size; the projection has rows of queries, keys, then values."""

    heads: int
    kv_heads: int
    head_dim: int


class DecodeQkv(Protocol):
    """`decode_qkv`, or what computes the same."""

    def __call__(
        self,
        x: mx.array,
        projections: Sequence[tuple[Matrix, mx.array]],
        norm: Norm,
        heads: Heads,
        periods: mx.array,
        place: Place,
        pages: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]: ...


def decode_qkv(
    x: mx.array,
    projections: Sequence[tuple[Matrix, mx.array]],
    norm: Norm,
    heads: Heads,
    periods: mx.array,
    place: Place,
    pages: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Queries and keys with RoPE applied, and values; keys and values as a cache takes them.

    x [tokens, hidden]; projections: matrices [.., hidden] and biases, one for queries, keys and
    values together or, where they are quantized differently, one for each;
    periods [head_dim / 2] float32, tokens per radian; place: of one token of each of several
    sequences, or of the first of a chunk; pages [tokens, 2, kv_heads, any, head_dim]: keys and
    values of each sequence's earlier tokens, with room for this one
    -> q [heads, tokens, head_dim], kv [2, kv_heads, tokens, head_dim]; with pages, in kv's place
    the pages with the tokens in them, as a new array
    """
    tokens, count = x.shape[0], heads.heads + heads.kv_heads
    h = mx.fast.rms_norm(x, norm.weight, norm.eps)
    y = mx.concatenate([product(h, matrix) + bias for matrix, bias in projections], axis=-1)
    y = y.reshape(tokens, -1, heads.head_dim).swapaxes(0, 1)  # [heads + 2 kv_heads, tokens, d]
    turned = _rotated(y[:count], periods, place.offsets)
    kv = mx.concatenate([turned[heads.heads :], y[count:]])
    kv = kv.reshape(2, heads.kv_heads, tokens, heads.head_dim)
    if pages is not None:
        full = mx.array(pages)  # a new handle: `pages` itself is unchanged
        for token, spot in enumerate(place.spots):
            full[token, :, :, spot.slot] = kv[:, :, token]
        kv = full
    return turned[: heads.heads], kv


def _rotated(y: mx.array, periods: mx.array, offsets: Sequence[int]) -> mx.array:
    """RoPE of y [heads, tokens, head_dim]. offsets: each token's position, or the first one's."""
    each = len(offsets) > 1
    rotated: mx.array = mx.fast.rope(
        y.swapaxes(0, 1)[:, :, None] if each else y[None],
        y.shape[2],
        traditional=False,
        base=None,
        scale=1.0,
        offset=mx.array(list(offsets)) if each else offsets[0],
        freqs=periods,
    )
    return rotated[:, :, 0].swapaxes(0, 1) if each else rotated[0]


def metal(factory: Factory | None = None, threads: Threads = largest) -> DecodeQkv:
    """As `decode_qkv`, with metal/decode_qkv.metal for what is `supported`."""
    names = ["x", "gain", "weight", "scales", "biases", "bias", "periods", "eps"]
    names += ["places", "layer", "pages"]
    kernel = MetalKernel("decode_qkv", names, ["q", "kv"], factory, threads, SIZES)

    def run(
        x: mx.array,
        projections: Sequence[tuple[Matrix, mx.array]],
        norm: Norm,
        heads: Heads,
        periods: mx.array,
        place: Place,
        pages: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        matrix, bias = projections[0]
        tokens, (queries, kv_heads, width) = x.shape[0], heads
        rows = width * max(1, ROWS // width)
        paged = pages is None or (width % 4 == 0 and pages.size >= CONSTANT)
        fits = padded(tokens) * rows <= SUMS and len(projections) == 1
        if not (fits and paged and supported(x, matrix)):
            return decode_qkv(x, projections, norm, heads, periods, place, pages)
        template = described(x, matrix) | {
            "ROWS": rows,
            "HEADS": queries,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": width,
            "PAGE": 0 if pages is None else pages.shape[3],
        }
        size = kernel.threads(template)
        if size == 0:
            return decode_qkv(x, projections, norm, heads, periods, place, pages)
        kv_shape = (2, kv_heads, tokens, width) if pages is None else pages.shape
        q, kv = kernel(
            *(x, norm.weight, *inputs(x, matrix), bias, periods, number(norm.eps)),
            *(place.table, place.layer, x if pages is None else pages),
            template=template,
            threadgroups=(-(-matrix.weight.shape[0] // rows), 1, 1),
            threads=size,
            outputs=[((queries, tokens, width), x.dtype), (kv_shape, x.dtype)],
        )
        return q, kv

    return run


def examples(dtype: mx.Dtype) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernel."""
    heads, width = Heads(4, 2, 64), 192
    rows = (heads.heads + 2 * heads.kv_heads) * heads.head_dim
    x = mx.random.normal((3, width), key=mx.random.key(2)).astype(dtype)
    gain, bias = (mx.random.normal((n,), key=mx.random.key(1)).astype(dtype) for n in (width, rows))
    periods = 10000.0 ** (mx.arange(0, heads.head_dim, 2) / heads.head_dim)
    pages = mx.random.normal((3, 2, heads.kv_heads, 5, heads.head_dim), key=mx.random.key(3))
    pages = pages.astype(dtype)
    norm, eight = Norm(gain, 1e-5), QuantizationSpec(8, 64, "affine")
    spots = [[Spot(1, 2, 3), Spot(4, slot, slot + 1)] for slot in (3, 0, 4)]
    quantized = [(random_matrix(rows, width, eight, dtype), bias)]
    for offsets in ((7,), (7, 0, 300)):
        count = len(offsets)
        place = places(offsets, spots[:count])[1]
        yield x[:count], quantized, norm, heads, periods, place, pages[:count]
    projections = [(random_matrix(rows, width, None, dtype), bias)]
    yield x, projections, norm, heads, periods, anywhere(7)
