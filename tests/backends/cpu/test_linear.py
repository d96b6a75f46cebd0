"""Projections and rows of matrices in every format, against float64."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.backends.cpu import library
from tests.support.native import (
    EXACT,
    FORMATS,
    Random,
    device_of,
    random_matrix,
    relative,
    variants,
)

pytestmark = pytest.mark.parametrize("variant", variants())

EPS = 1e-5


def project(
    variant: str,
    parts: list[Random],
    x: np.ndarray[Any, Any],
    norm: np.ndarray[Any, Any] | None = None,
    biases: list[Any] | None = None,
    residual: np.ndarray[Any, Any] | None = None,
    threads: int = 2,
) -> np.ndarray[Any, Any]:
    biases = biases or [None] * len(parts)
    address = library.address
    structs = (library.LinearPart * len(parts))(
        *(
            library.LinearPart(part.matrix, address(bias))
            for part, bias in zip(parts, biases, strict=True)
        )
    )
    linear = library.Linear(structs, len(parts), address(norm), EPS)
    y = np.full((len(x), sum(part.matrix.outputs for part in parts)), np.nan, np.float32)
    call = library.LinearCall(
        ctypes.pointer(linear), len(x), address(x), address(residual), address(y)
    )
    device = device_of(variant, threads)
    device.linear(device.handle, ctypes.byref(call))
    return y


def normed(x: np.ndarray[Any, Any], weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * weight


@pytest.mark.parametrize("form", FORMATS)
def test_a_projection_of_any_rows_is_exact(variant: str, form: str) -> None:
    # 27 outputs are two strips and tiles of every kind, 1 to 9 rows too; 352 inputs end in a chunk
    # that is not whole, whatever its length.
    inputs = 352 if "128" not in form and "64" not in form else 384
    rng = np.random.default_rng(len(form))
    part = random_matrix(rng, form, 27, inputs)
    norm, bias = rng.random(inputs, np.float32) + 0.5, rng.standard_normal(27, np.float32)
    for rows in (1, 2, 3, 4, 9, 33, 130):
        x, residual = (rng.standard_normal((rows, width), np.float32) for width in (inputs, 27))
        exact = normed(x, norm) @ part.values.T + bias + residual
        ours = project(variant, [part], x, norm, [bias], residual)
        assert relative(ours, exact) < EXACT, rows
        plain = project(variant, [part], x)
        assert relative(plain, x.astype(np.float64) @ part.values.T) < EXACT, rows


@given(st.data())
@settings(max_examples=40)
def test_any_shape_is_exact(variant: str, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMATS))
    unit = int(form.split()[2]) if form.startswith("affine") else 32
    outputs, groups = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 6))
    rows, threads = data.draw(st.integers(1, 32)), data.draw(st.sampled_from([1, 2, 5]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    part = random_matrix(rng, form, outputs, groups * unit, wide=data.draw(st.booleans()))
    x = rng.standard_normal((rows, groups * unit), np.float32)
    ours = project(variant, [part], x, threads=threads)
    # A few outputs may be sums that cancel: their error is that of the terms.
    error = np.linalg.norm(ours - x.astype(np.float64) @ part.values.T)
    assert error < EXACT * np.linalg.norm(abs(x.astype(np.float64)) @ part.terms.T)


@pytest.mark.parametrize("form", ["bfloat16", "mxfp4", "affine 4 64", "affine 6 64", "affine 8 64"])
def test_a_row_does_not_depend_on_the_others(variant: str, form: str) -> None:
    rng = np.random.default_rng(1)
    part = random_matrix(rng, form, 50, 320)
    x = rng.standard_normal((32, 320), np.float32)
    alone = np.concatenate([project(variant, [part], row[None]) for row in x])
    for rows in (2, 3, 7, 32):
        np.testing.assert_array_equal(project(variant, [part], x[:rows]), alone[:rows])
    np.testing.assert_array_equal(project(variant, [part], x, threads=5), alone)


def test_parts_of_different_formats_lie_side_by_side(variant: str) -> None:
    rng = np.random.default_rng(2)
    parts = [
        random_matrix(rng, form, outputs, 128)
        for form, outputs in (("bfloat16", 40), ("affine 8 64", 9), ("affine 8 64", 5))
    ]
    biases = [rng.standard_normal(40, np.float32), None, rng.standard_normal(5, np.float32)]
    x = rng.standard_normal((5, 128), np.float32)
    exact = x @ np.concatenate([part.values for part in parts]).T
    exact[:, :40] += biases[0]
    exact[:, 49:] += biases[2]
    assert relative(project(variant, parts, x, biases=biases), exact) < EXACT


def test_the_smallest_and_the_largest_scales_of_mxfp4(variant: str) -> None:
    part = random_matrix(np.random.default_rng(3), "mxfp4", 4, 64)
    codes, scales = part.arrays
    codes[:] = 0x72  # 1 and 6
    scales[:] = [[0, 1], [2, 0], [254, 120], [127, 0]]
    x = np.zeros((1, 64), np.float32)
    x[0, :32:2], x[0, 32::2] = 2.0**-10, 1
    exact = np.exp2(scales.astype(np.float64) - 127) * [2.0**-6, 2.0**4]
    ours = project(variant, [part], x)[0]
    # Where bfloat16 is multiplied, the processor takes weights below 2^-126 as 0.
    lost = 2.0**-122 if variant == "amx" else 0
    np.testing.assert_allclose(ours, exact.sum(axis=1), rtol=1e-6, atol=lost)


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_a_matrix_are_its_values(variant: str, form: str) -> None:
    inputs = 352 if "128" not in form and "64" not in form else 384
    part = random_matrix(np.random.default_rng(4), form, 12, inputs)
    ids, out = np.array([11, 0, 5, 5], np.int64), np.full((4, inputs), np.nan, np.float32)
    call = library.RowsCall(part.matrix, 4, library.address(ids), library.address(out))
    device = device_of(variant)
    device.rows(device.handle, ctypes.byref(call))
    np.testing.assert_allclose(out, part.values[ids], rtol=3e-7, atol=1e-6)
