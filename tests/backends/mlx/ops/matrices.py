"""Random matrices in every form a projection may have, beside the same in float64."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.ops.matrix import Matrix
from gptoss_mlx.spec.config import QuantizationSpec
from tests.backends.mlx.ops.banks import Generator
from tests.support.released_tensors import Values, mxfp4

MXFP4 = QuantizationSpec(4, 32, "mxfp4")


def affine(bits: int, group: int) -> QuantizationSpec:
    return QuantizationSpec(bits, group, "affine")


@dataclass(frozen=True)
class Case:
    """A matrix and, in `values` [outputs, inputs], what its parts mean."""

    matrix: Matrix
    values: Values


def exact(a: mx.array) -> Values:
    return np.array(a.astype(mx.float32)).astype(np.float64)


def normal(rng: Generator, dtype: mx.Dtype, *shape: int) -> mx.array:
    return mx.array(rng.standard_normal(shape, np.float32)).astype(dtype)


def packed(codes: NDArray[np.uint8], bits: int) -> mx.array:
    """[.., values] -> uint32 [.., values * bits / 32], a stream of bits, the lowest first."""
    stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    flat = stream.reshape(*codes.shape[:-1], -1)
    return mx.array(np.packbits(flat, axis=-1, bitorder="little").view("<u4"))


def random_case(
    rng: Generator,
    rows: int,
    inputs: int,
    spec: QuantizationSpec | None,
    dtype: mx.Dtype,
) -> Case:
    """Every code; affine scales over a factor of 4, biases that put about a half below zero."""
    if spec is None:
        weight = normal(rng, dtype, rows, inputs)
        return Case(Matrix(weight), exact(weight))
    if spec.mode == "mxfp4":
        codes = rng.integers(0, 256, (rows, inputs // 2), np.uint8)
        scales = rng.integers(120, 126, (rows, inputs // 32), np.uint8)
        words = mx.array(codes.view("<u4"))
        return Case(Matrix(words, mx.array(scales), None, spec), mxfp4(codes, scales))
    codes = rng.integers(0, 1 << spec.bits, (rows, inputs), np.uint8)
    groups = rows, inputs // spec.group_size
    scale = rng.uniform(1, 4, groups) / (1 << spec.bits)
    bias = scale * (1 << spec.bits) * rng.uniform(-0.6, -0.4, groups)
    scales, biases = (mx.array(a.astype(np.float32)).astype(dtype) for a in (scale, bias))
    each = [np.repeat(exact(a), spec.group_size, axis=1) for a in (scales, biases)]
    return Case(Matrix(packed(codes, spec.bits), scales, biases, spec), codes * each[0] + each[1])


def normed(x: mx.array, gain: mx.array, eps: float) -> Values:
    """RMSNorm in float64."""
    values = exact(x)
    square = np.mean(values**2, axis=-1, keepdims=True)
    return values / np.sqrt(square + eps) * exact(gain)
