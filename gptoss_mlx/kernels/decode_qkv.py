"""Attention's queries, keys and values for a few tokens: norm, projection, bias and RoPE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from gptoss_mlx.config import QuantizationSpec
from gptoss_mlx.kernels.matrix import (
    SUMS,
    THREADS,
    Matrix,
    Norm,
    inputs,
    product,
    random_matrix,
    served,
)
from gptoss_mlx.kernels.matrix import template as described
from gptoss_mlx.kernels.metal import Factory, MetalKernel

ROWS = 64  # rows of a threadgroup, or one head where heads are larger


class Heads(NamedTuple):
    """Which rows of the projection are what: queries, then keys, then values."""

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
        offset: mx.array,
    ) -> tuple[mx.array, mx.array]: ...


def decode_qkv(
    x: mx.array,
    projections: Sequence[tuple[Matrix, mx.array]],
    norm: Norm,
    heads: Heads,
    periods: mx.array,
    offset: mx.array,
) -> tuple[mx.array, mx.array]:
    """Rotated queries, and rotated keys beside values as a cache takes them.

    x [tokens, hidden]; projections: matrices [.., hidden] and biases, all queries, keys and values
    in one or, where they are kept in different forms, one for each;
    periods [head_dim / 2] float32, tokens per radian; offset int32 [], the first token's position
    -> q [heads, tokens, head_dim], kv [2, kv_heads, tokens, head_dim]
    """
    tokens, count = x.shape[0], heads.heads + heads.kv_heads
    h = mx.fast.rms_norm(x, norm.weight, norm.eps)
    y = mx.concatenate([product(h, matrix) + bias for matrix, bias in projections], axis=-1)
    y = y.reshape(tokens, -1, heads.head_dim).swapaxes(0, 1)  # [heads + 2 kv_heads, tokens, d]
    turned = mx.fast.rope(
        y[None, :count],
        heads.head_dim,
        traditional=False,
        base=None,
        scale=1.0,
        offset=offset,
        freqs=periods,
    )[0]
    kv = mx.concatenate([turned[heads.heads :], y[count:]])
    return turned[: heads.heads], kv.reshape(2, heads.kv_heads, tokens, heads.head_dim)


def metal(factory: Factory | None = None) -> DecodeQkv:
    """As `decode_qkv`, with metal/decode_qkv.metal for what is `served`."""
    names = ["x", "gain", "weight", "scales", "biases", "bias", "periods", "offset", "eps"]
    kernel = MetalKernel("decode_qkv", names, ["q", "kv"], factory)

    def run(
        x: mx.array,
        projections: Sequence[tuple[Matrix, mx.array]],
        norm: Norm,
        heads: Heads,
        periods: mx.array,
        offset: mx.array,
    ) -> tuple[mx.array, mx.array]:
        matrix, bias = projections[0]
        tokens, (queries, kv_heads, width) = x.shape[0], heads
        rows = width * max(1, ROWS // width)
        if len(projections) > 1 or not served(x, matrix) or tokens * rows > SUMS:
            return decode_qkv(x, projections, norm, heads, periods, offset)
        q, kv = kernel(
            *(x, norm.weight, *inputs(x, matrix), bias, periods, offset, mx.array(norm.eps)),
            template=described(x, matrix)
            | {"ROWS": rows, "HEADS": queries, "KV_HEADS": kv_heads, "HEAD_DIM": width},
            threadgroups=(-(-matrix.weight.shape[0] // rows), 1, 1),
            threads=THREADS,
            outputs=[((queries, tokens, width), x.dtype), ((2, kv_heads, tokens, width), x.dtype)],
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
    for tokens, spec in ((1, QuantizationSpec(8, 64, "affine")), (3, None)):
        projections = [(random_matrix(rows, width, spec, dtype), bias)]
        offset = mx.array(7, mx.int32)
        yield x[:tokens], projections, Norm(gain, 1e-5), heads, periods, offset
