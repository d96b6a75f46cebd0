"""The router for a few tokens: norm, logits, and the normalized vectors for the experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.matrix import (
    Matrix,
    Norm,
    inputs,
    product,
    random_matrix,
    supported,
)
from gptoss_mlx.backends.mlx.ops.matrix import template as described
from gptoss_mlx.backends.mlx.ops.metal import Factory, MetalKernel, Threads, largest, number
from gptoss_mlx.spec.config import QuantizationSpec

ROWS = 4  # rows of a threadgroup: one simdgroup's set, since a router has few rows in all
SIZES = (128, 64)  # threads of a threadgroup
KERNELS = ("decode_router",)  # of metal/


class DecodeRouter(Protocol):
    """`decode_router`, or what computes the same."""

    def __call__(
        self, x: mx.array, matrix: Matrix, bias: mx.array, norm: Norm
    ) -> tuple[mx.array, mx.array]: ...


def decode_router(
    x: mx.array, matrix: Matrix, bias: mx.array, norm: Norm
) -> tuple[mx.array, mx.array]:
    """The router's logits, and the RMS norm of x, which the experts read.

    x [tokens, hidden], matrix [experts, hidden], bias [experts]
    -> logits float32 [tokens, experts], norm(x) [tokens, hidden]
    """
    h = mx.fast.rms_norm(x, norm.weight, norm.eps)
    return product(h, matrix, mx.float32) + bias, h


def metal(factory: Factory | None = None, threads: Threads = largest) -> DecodeRouter:
    """As `decode_router`, with metal/decode_router.metal for what is `supported`."""
    names = ["x", "gain", "weight", "scales", "biases", "bias", "eps"]
    kernel = MetalKernel("decode_router", names, ["logits", "h"], factory, threads, SIZES)

    def run(x: mx.array, matrix: Matrix, bias: mx.array, norm: Norm) -> tuple[mx.array, mx.array]:
        if not supported(x, matrix):
            return decode_router(x, matrix, bias, norm)
        experts, template = matrix.weight.shape[0], described(x, matrix) | {"ROWS": ROWS}
        size = kernel.threads(template)
        if size == 0:
            return decode_router(x, matrix, bias, norm)
        logits, h = kernel(
            *(x, norm.weight, *inputs(x, matrix), bias, number(norm.eps)),
            template=template,
            threadgroups=(-(-experts // ROWS), 1, 1),
            threads=size,
            outputs=[((x.shape[0], experts), mx.float32), (x.shape, x.dtype)],
        )
        return logits, h

    return run


def examples(dtype: mx.Dtype) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernel."""
    rows, width = 3 * ROWS + 1, 192
    x = mx.random.normal((3, width), key=mx.random.key(2)).astype(dtype)
    gain, bias = (mx.random.normal((n,), key=mx.random.key(1)).astype(dtype) for n in (width, rows))
    for tokens, spec in ((1, QuantizationSpec(8, 64, "affine")), (3, None)):
        yield x[:tokens], random_matrix(rows, width, spec, dtype), bias, Norm(gain, 1e-5)
