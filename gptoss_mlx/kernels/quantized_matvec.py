"""A projection of a few tokens, with what stands before and after it: norm, bias, residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx

from gptoss_mlx.config import QuantizationSpec
from gptoss_mlx.kernels.matmul import matmul
from gptoss_mlx.kernels.metal import Factory, MetalKernel

DECODED = 8  # tokens up to which a weight is read once for all of them
THREADS = 256
PASS = 32  # rows that the simdgroups of a threadgroup take at once
GROUPS = 64  # threadgroups wanted of a smaller matrix, for the cores of a larger chip
SHARE = 50  # bytes of weights a threadgroup reads for one of the vector, in a larger matrix
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
    """RMSNorm: its weight [inputs], and what is added to the mean square."""

    weight: mx.array
    eps: float


class QuantizedMatvec(Protocol):
    """`quantized_matvec`, or what computes the same."""

    def __call__(
        self,
        x: mx.array,
        matrix: Matrix,
        bias: mx.array | None = None,
        norm: Norm | None = None,
        residual: mx.array | None = None,
    ) -> mx.array: ...


def quantized_matvec(
    x: mx.array,
    matrix: Matrix,
    bias: mx.array | None = None,
    norm: Norm | None = None,
    residual: mx.array | None = None,
) -> mx.array:
    """norm(x) W^T + bias + residual; all but the product optional.

    x [tokens, inputs], bias [outputs], residual [tokens, outputs], all of one dtype
    -> [tokens, outputs]
    """
    if norm is not None:
        x = mx.fast.rms_norm(x, norm.weight, norm.eps)
    y = _product(x, matrix)
    if bias is not None:
        y = y + bias
    return y if residual is None else residual + y


def _product(x: mx.array, matrix: Matrix) -> mx.array:
    if matrix.spec is None or matrix.scales is None:
        return matmul(x, matrix.weight)
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


def served(x: mx.array, matrix: Matrix) -> bool:
    """Whether metal/matvec.metal computes x W^T: formats, dtypes and shapes it is written for."""
    tokens, inputs = x.shape
    arrays = [a for a in (matrix.weight, matrix.scales, matrix.biases) if a is not None]
    return (
        1 <= tokens <= DECODED
        and inputs % 32 == 0
        and x.dtype in (mx.float32, mx.bfloat16)
        and all(a.size >= 8 for a in arrays)  # or MLX would hand it over in another address space
        and (matrix.spec.mode in _FORMATS if matrix.spec else matrix.weight.dtype == x.dtype)
    )


def template(x: mx.array, matrix: Matrix) -> dict[str, mx.Dtype | int | bool]:
    """The template arguments that describe x and the matrix."""
    spec, scales = matrix.spec, matrix.scales
    return {
        "T": x.dtype,
        "S": x.dtype if scales is None else scales.dtype,
        "FORMAT": 0 if spec is None else _FORMATS[spec.mode],
        "BITS": 8 * x.itemsize if spec is None else spec.bits,
        "GROUP": 32 if spec is None else spec.group_size,
        "K": x.shape[1],
        "N": matrix.weight.shape[0],
        "TOKENS": x.shape[0],
    }


def inputs(x: mx.array, matrix: Matrix) -> tuple[mx.array, mx.array, mx.array]:
    """weight, scales, biases as a kernel takes them: what is absent is something it never reads."""
    scales = x if matrix.scales is None else matrix.scales
    return matrix.weight, scales, scales if matrix.biases is None else matrix.biases


def rows(x: mx.array, matrix: Matrix, normed: bool) -> int:
    """Rows of a threadgroup: many enough to pay for the vector, few enough for many cores."""
    tokens, count = x.shape[0], matrix.weight.shape[0]
    bits = 8 * x.itemsize if matrix.spec is None else matrix.spec.bits
    paying = SHARE * 8 * x.itemsize * (1 + normed) // bits
    wanted = min(paying, -(-count // GROUPS), SUMS // tokens)
    return max(PASS, -(-wanted // PASS) * PASS)


def metal(factory: Factory | None = None) -> QuantizedMatvec:
    """As `quantized_matvec`, with metal/quantized_matvec.metal for what is `served`."""
    names = ["x", "gain", "weight", "scales", "biases", "bias", "residual", "eps"]
    kernel = MetalKernel("quantized_matvec", names, ["out"], factory)

    def run(
        x: mx.array,
        matrix: Matrix,
        bias: mx.array | None = None,
        norm: Norm | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        if not served(x, matrix):
            return quantized_matvec(x, matrix, bias, norm, residual)
        gain, eps = (x, 0.0) if norm is None else norm
        tokens, count = x.shape[0], matrix.weight.shape[0]
        group = rows(x, matrix, norm is not None)
        return kernel(
            *(x, gain, *inputs(x, matrix)),
            *(x if bias is None else bias, x if residual is None else residual, mx.array(eps)),
            template=template(x, matrix)
            | {
                "ROWS": group,
                "NORM": norm is not None,
                "BIAS": bias is not None,
                "RESIDUAL": residual is not None,
            },
            threadgroups=(-(-count // group), 1, 1),
            threads=THREADS,
            outputs=[((tokens, count), x.dtype)],
        )[0]

    return run
