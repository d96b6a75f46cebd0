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
from gptoss_mlx.kernels.metal import CONSTANT, Factory, MetalKernel, number

ROWS = 64  # rows of a threadgroup, or one head where heads are larger


class Heads(NamedTuple):
    """Which rows of the projection are what: queries, then keys, then values."""

    heads: int
    kv_heads: int
    head_dim: int


class Page(NamedTuple):
    """Keys and values of other tokens [2, kv_heads, tokens, head_dim]; the new ones' first place.

    The new tokens must fit.
    """

    kv: mx.array
    slot: int


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
        page: Page | None = None,
    ) -> tuple[mx.array, mx.array]: ...


def decode_qkv(
    x: mx.array,
    projections: Sequence[tuple[Matrix, mx.array]],
    norm: Norm,
    heads: Heads,
    periods: mx.array,
    offset: mx.array,
    page: Page | None = None,
) -> tuple[mx.array, mx.array]:
    """Rotated queries, and rotated keys beside values as a cache takes them.

    x [tokens, hidden]; projections: matrices [.., hidden] and biases, all queries, keys and values
    in one or, where they are kept in different forms, one for each;
    periods [head_dim / 2] float32, tokens per radian; offset int32 [], the first token's position
    -> q [heads, tokens, head_dim], kv [2, kv_heads, tokens, head_dim]; with a page, in kv's place
    the page with the tokens in it, as a new array
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
    kv = kv.reshape(2, heads.kv_heads, tokens, heads.head_dim)
    if page is not None:
        full = mx.array(page.kv)  # a new handle: the assignment leaves the page alone
        full[..., page.slot : page.slot + tokens, :] = kv
        kv = full
    return turned[: heads.heads], kv


def metal(factory: Factory | None = None) -> DecodeQkv:
    """As `decode_qkv`, with metal/decode_qkv.metal for what is `served`."""
    names = ["x", "gain", "weight", "scales", "biases", "bias", "periods", "offset", "eps"]
    kernel = MetalKernel("decode_qkv", [*names, "page", "slot"], ["q", "kv"], factory)

    def run(
        x: mx.array,
        projections: Sequence[tuple[Matrix, mx.array]],
        norm: Norm,
        heads: Heads,
        periods: mx.array,
        offset: mx.array,
        page: Page | None = None,
    ) -> tuple[mx.array, mx.array]:
        matrix, bias = projections[0]
        tokens, (queries, kv_heads, width) = x.shape[0], heads
        rows = width * max(1, ROWS // width)
        paged = page is None or (width % 4 == 0 and page.kv.size >= CONSTANT)
        if len(projections) > 1 or not served(x, matrix) or tokens * rows > SUMS or not paged:
            return decode_qkv(x, projections, norm, heads, periods, offset, page)
        full, slot = page or (x, 0)
        room = tokens if page is None else full.shape[2]
        q, kv = kernel(
            *(x, norm.weight, *inputs(x, matrix), bias, periods, offset, number(norm.eps)),
            *(full, mx.array(slot)),
            template=described(x, matrix)
            | {"ROWS": rows, "HEADS": queries, "KV_HEADS": kv_heads, "HEAD_DIM": width}
            | {"PAGE": room},
            threadgroups=(-(-matrix.weight.shape[0] // rows), 1, 1),
            threads=THREADS,
            outputs=[((queries, tokens, width), x.dtype), ((2, kv_heads, room, width), x.dtype)],
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
    kv = mx.random.normal((2, heads.kv_heads, 5, heads.head_dim), key=mx.random.key(3))
    page = Page(kv.astype(dtype), 3)
    for tokens, spec, where in ((1, QuantizationSpec(8, 64, "affine"), page), (3, None, None)):
        projections = [(random_matrix(rows, width, spec, dtype), bias)]
        offset = mx.array(7, mx.int32)
        yield x[:tokens], projections, Norm(gain, 1e-5), heads, periods, offset, where
