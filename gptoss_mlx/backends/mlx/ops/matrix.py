"""The matrix of a projection, dense or quantized, and the arguments metal/matvec.metal takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.matmul import matmul
from gptoss_mlx.backends.mlx.ops.metal import CONSTANT, DECODED, Template, padded
from gptoss_mlx.spec.config import QuantizationSpec

SIZES = (256, 128)  # threads of a threadgroup
PASS = 32  # rows that the simdgroups of 256 threads take at once
BLOCK = 2048  # rows of a dense matrix that are widened at a time
SUMS = 1024  # sums in a threadgroup's memory, 4 KB
_FORMATS = {"affine": 1, "mxfp4": 2}  # as metal/weights.metal counts them; 0 is dense


@dataclass(frozen=True)
class Matrix:
    """W [outputs, inputs]: dense in the compute dtype; or, with a spec, as MLX quantizes it.

    weight: packed uint32 with a spec; scales [outputs, inputs / group], and in affine mode biases
    of the same shape and dtype.
    """

    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    spec: QuantizationSpec | None = None


class Norm(NamedTuple):
    """RMSNorm: its weight [inputs], and eps, which is added to the mean square."""

    weight: mx.array
    eps: float


def product(x: mx.array, matrix: Matrix, dtype: mx.Dtype | None = None) -> mx.array:
    """x W^T by MLX's own operations: [tokens, inputs] -> [tokens, outputs].

    dtype: of the result, by default x's; float32 keeps sums of bfloat16 products unrounded.
    """
    x = x.astype(dtype or x.dtype)
    if matrix.spec is None or matrix.scales is None:
        alike = matrix.weight.dtype == x.dtype
        return matmul(x, matrix.weight) if alike else _widened(x, matrix.weight)
    return mx.quantized_matmul(
        x,
        matrix.weight,
        matrix.scales,
        matrix.biases,
        transpose=True,
        group_size=matrix.spec.group_size,
        bits=matrix.spec.bits,
        mode=matrix.spec.mode,
    )


def _widened(x: mx.array, weight: mx.array) -> mx.array:
    """As `matmul`, with the weight widened to x's dtype one block of rows at a time."""
    rows = range(0, weight.shape[0], BLOCK)
    blocks = [matmul(x, weight[i : i + BLOCK].astype(x.dtype)) for i in rows]
    return mx.concatenate(blocks, axis=-1)


def supported(x: mx.array, matrix: Matrix) -> bool:
    """Whether metal/matvec.metal computes x W^T: formats, dtypes and shapes it is written for."""
    tokens, inputs = x.shape
    arrays = [a for a in (matrix.weight, matrix.scales, matrix.biases) if a is not None]
    return (
        1 <= tokens <= DECODED
        and inputs % 32 == 0
        and x.dtype in (mx.float32, mx.bfloat16)
        and all(a.size >= CONSTANT for a in arrays)
        and (matrix.spec.mode in _FORMATS if matrix.spec else matrix.weight.dtype == x.dtype)
    )


def template(x: mx.array, matrix: Matrix) -> Template:
    """The template arguments that describe x and the matrix.

    TOKENS is rounded up; a kernel takes the number of tokens from x's shape.
    """
    spec, scales = matrix.spec, matrix.scales
    return {
        "T": x.dtype,
        "S": x.dtype if scales is None else scales.dtype,
        "FORMAT": 0 if spec is None else _FORMATS[spec.mode],
        "BITS": 8 * x.itemsize if spec is None else spec.bits,
        "GROUP": 32 if spec is None else spec.group_size,
        "K": x.shape[1],
        "N": matrix.weight.shape[0],
        "TOKENS": padded(x.shape[0]),
    }


def inputs(x: mx.array, matrix: Matrix) -> tuple[mx.array, mx.array, mx.array]:
    """weight, scales, biases as a kernel's inputs; for an absent one any array, never read."""
    scales = x if matrix.scales is None else matrix.scales
    return matrix.weight, scales, scales if matrix.biases is None else matrix.biases


def random_matrix(rows: int, inputs: int, spec: QuantizationSpec | None, dtype: mx.Dtype) -> Matrix:
    """A random matrix, the same at every call, with rows of a norm of about 1."""
    weight = mx.random.normal((rows, inputs), scale=inputs**-0.5, key=mx.random.key(rows))
    if spec is None:
        return Matrix(weight.astype(dtype))
    parts = mx.quantize(
        weight.astype(dtype), group_size=spec.group_size, bits=spec.bits, mode=spec.mode
    )
    return Matrix(*parts, spec=spec)
