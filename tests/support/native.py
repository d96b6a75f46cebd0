"""The kernels of native/: a device of each variant, and random matrices beside their values in
float64."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.backends.cpu import library

Array: TypeAlias = NDArray[Any]

OWN, SHARED = 8 << 20, 64 << 20
EXACT = 1e-6
"""Relative L2 of a kernel in float32 against float64."""

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@cache
def device_of(variant: str, threads: int = 2) -> library.Device:
    return library.Device(variant, threads, OWN, SHARED)


def variants() -> list[Any]:
    """Those of this processor; the kernels must be there where GPTOSS_NATIVE is set."""
    missing = library.why_missing()
    if missing is not None:
        assert "GPTOSS_NATIVE" not in os.environ, missing
        return [pytest.param("none", marks=pytest.mark.skip(reason=missing))]
    return [*library.supported()]


@dataclass
class Random:
    """A random matrix as the kernels take it: the arrays it lies in, and its float64 values.

    terms: of affine codes, |code * scale| + |bias|, whose rounding a value may come from.
    """

    matrix: library.Matrix
    arrays: tuple[Array, ...]
    values: Array
    terms: Array


FORMATS = (
    "float32",
    "bfloat16",
    "mxfp4",
    *(f"affine {bits} {group}" for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)),
)


def random_matrix(
    rng: np.random.Generator, form: str, outputs: int, inputs: int, *, wide: bool = False
) -> Random:
    """form: of FORMATS. wide: affine scales in float32."""
    kind, *numbers = form.split()
    if kind == "float32":
        weight = rng.standard_normal((outputs, inputs), np.float32)
        wide_values = weight.astype(np.float64)
        return Random(_matrix("F32", 32, 0, weight), (weight,), wide_values, abs(wide_values))
    if kind == "bfloat16":
        weight = narrow(rng.standard_normal((outputs, inputs), np.float32))
        values = widened(weight)
        return Random(_matrix("BF16", 16, 0, weight), (weight,), values, abs(values))
    if kind == "mxfp4":
        codes = rng.integers(0, 256, (outputs, inputs // 2), np.uint8)
        scales = rng.integers(117, 131, (outputs, inputs // 32), np.uint8)
        values = mxfp4_values(codes, scales)
        matrix = _matrix("mxfp4", 4, 32, codes, scales)
        return Random(matrix, (codes, scales), values, abs(values))
    bits, group = map(int, numbers)
    codes = rng.integers(0, 256, (outputs, inputs * bits // 8), np.uint8)
    parameters = [
        rng.standard_normal((outputs, inputs // group), np.float32) for _ in ("scales", "biases")
    ]
    held = parameters if wide else [narrow(array) for array in parameters]
    scale, bias = (
        np.repeat(array.astype(np.float64) if wide else widened(array), group, axis=1)
        for array in held
    )
    products = unpacked(codes, bits) * scale
    matrix = _matrix("affine", bits, group, codes, *held, inputs=inputs, wide=wide)
    return Random(matrix, (codes, *held), products + bias, abs(products) + abs(bias))


def mxfp4_values(codes: Array, scales: Array) -> Array:
    """[.., bytes] and [.., groups] uint8 -> [.., values] float64"""
    pairs = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
    return E2M1[pairs] * np.repeat(np.exp2(scales.astype(np.float64) - 127), 32, axis=-1)


def unpacked(codes: Array, bits: int) -> Array:
    flags = np.unpackbits(codes, axis=1, bitorder="little").reshape(len(codes), -1, bits)
    return (flags * (1 << np.arange(bits))).sum(axis=-1).astype(np.float64)


def narrow(x: Array) -> Array:
    """The bits of bfloat16 below a float32."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def widened(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _matrix(
    form: str, bits: int, group: int, *arrays: Array, inputs: int = 0, wide: bool = False
) -> library.Matrix:
    weight, scales, biases = (*map(library.address, arrays), None, None)[:3]
    outputs = len(arrays[0])
    inputs = inputs or arrays[0].shape[1] * 8 * arrays[0].itemsize // bits
    return library.Matrix(
        library.FORMATS[form], bits, group, wide, outputs, inputs, weight, scales, biases
    )


def relative(ours: Array, exact: Array) -> float:
    """Relative L2 error."""
    scale = float(np.linalg.norm(exact)) or 1.0
    return float(np.linalg.norm(ours - exact)) / scale
