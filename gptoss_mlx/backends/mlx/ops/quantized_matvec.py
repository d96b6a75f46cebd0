"""A projection of a few tokens, fused with the norm before it and the bias and residual after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.matrix import (
    PASS,
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
from gptoss_mlx.backends.mlx.ops.metal import Factory, MetalKernel, Threads, largest, number, padded
from gptoss_mlx.spec.config import QuantizationSpec

GROUPS = 64  # least threadgroups wanted, so that a small matrix occupies a large chip's cores
SHARE = 50  # most bytes of weights that a threadgroup reads for a byte of the vector
KERNELS = ("quantized_matvec",)  # of metal/


class QuantizedMatvec(Protocol):
    """`quantized_matvec`, or what computes the same."""

    def __call__(
        self,
        x: mx.array,
        matrix: Matrix,
        bias: mx.array | None = None,
        norm: Norm | None = None,
        residual: mx.array | None = None,
        dtype: mx.Dtype | None = None,
    ) -> mx.array: ...


def quantized_matvec(
    x: mx.array,
    matrix: Matrix,
    bias: mx.array | None = None,
    norm: Norm | None = None,
    residual: mx.array | None = None,
    dtype: mx.Dtype | None = None,
) -> mx.array:
    """norm(x) W^T + bias + residual; all but the product optional.

    x [tokens, inputs], bias [outputs], residual [tokens, outputs], all of one dtype
    -> [tokens, outputs] of that dtype, or of `dtype`, without rounding the product to x's before
    """
    if norm is not None:
        x = mx.fast.rms_norm(x, norm.weight, norm.eps)
    y = product(x, matrix, dtype)
    if bias is not None:
        y = y + bias
    return y if residual is None else residual + y


def _rows(x: mx.array, matrix: Matrix, normed: bool) -> int:
    """Rows of a threadgroup: enough to pay for reading the vector, few enough for many cores."""
    tokens, count = padded(x.shape[0]), matrix.weight.shape[0]
    bits = 8 * x.itemsize if matrix.spec is None else matrix.spec.bits
    paying = SHARE * 8 * x.itemsize * (1 + normed) // bits
    wanted = min(paying, -(-count // GROUPS), SUMS // tokens)
    return max(PASS, -(-wanted // PASS) * PASS)


def metal(factory: Factory | None = None, threads: Threads = largest) -> QuantizedMatvec:
    """As `quantized_matvec`, with metal/quantized_matvec.metal for what is `supported`."""
    names = ["x", "gain", "weight", "scales", "biases", "bias", "residual", "eps"]
    kernel = MetalKernel("quantized_matvec", names, ["out"], factory, threads, SIZES)

    def run(
        x: mx.array,
        matrix: Matrix,
        bias: mx.array | None = None,
        norm: Norm | None = None,
        residual: mx.array | None = None,
        dtype: mx.Dtype | None = None,
    ) -> mx.array:
        if not supported(x, matrix):
            return quantized_matvec(x, matrix, bias, norm, residual, dtype)
        gain, eps = (x, 0.0) if norm is None else norm
        tokens, count = x.shape[0], matrix.weight.shape[0]
        group = _rows(x, matrix, norm is not None)
        template = described(x, matrix) | {
            "Y": dtype or x.dtype,
            "ROWS": group,
            "NORM": norm is not None,
            "BIAS": bias is not None,
            "RESIDUAL": residual is not None,
        }
        size = kernel.threads(template)
        if size == 0:
            return quantized_matvec(x, matrix, bias, norm, residual, dtype)
        return kernel(
            *(x, gain, *inputs(x, matrix)),
            *(x if bias is None else bias, x if residual is None else residual, number(eps)),
            template=template,
            threadgroups=(-(-count // group), 1, 1),
            threads=size,
            outputs=[((tokens, count), dtype or x.dtype)],
        )[0]

    return run


def examples(dtype: mx.Dtype) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernel."""
    rows, width = PASS + 5, 192
    specs = [
        *(QuantizationSpec(bits, 64, "affine") for bits in (4, 5, 6, 8)),
        QuantizationSpec(4, 32, "mxfp4"),
        None,
    ]
    x, residual = (
        mx.random.normal((3, size), key=mx.random.key(size)).astype(dtype) for size in (width, rows)
    )
    gain, bias = (mx.random.normal((n,), key=mx.random.key(1)).astype(dtype) for n in (width, rows))
    for tokens, spec in zip((1, 2, 3, 1, 2, 3), specs, strict=True):
        matrix = random_matrix(rows, width, spec, dtype)
        yield x[:tokens], matrix, bias, Norm(gain, 1e-5), residual[:tokens]
    yield x, random_matrix(rows, width, specs[3], dtype)
    yield x[:1], random_matrix(rows, width, specs[5], dtype), None, None, None, mx.float32
    # Eight tokens this wide do not fit in threadgroup memory: it holds one part at a time.
    x = mx.random.normal((8, 1472), key=mx.random.key(2)).astype(dtype)
    gain = mx.random.normal((1472,), key=mx.random.key(3)).astype(dtype)
    yield x, random_matrix(2 * rows, 1472, specs[0], dtype), None, Norm(gain, 1e-5)
