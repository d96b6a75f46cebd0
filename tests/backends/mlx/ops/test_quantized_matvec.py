"""A projection of few tokens against float64, by MLX's operations and by the Metal kernel."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.ops import matrix as matrices
from gptoss_mlx.backends.mlx.ops import quantized_matvec as op
from gptoss_mlx.backends.mlx.ops.matrix import Matrix, Norm
from gptoss_mlx.backends.mlx.ops.metal import Factory
from gptoss_mlx.spec.config import QuantizationSpec
from tests.backends.mlx.ops.matrices import (
    MXFP4,
    affine,
    exact,
    normal,
    normed,
    packed,
    random_case,
)
from tests.support.comparison import worst_row
from tests.support.metal_emulator import Emulator, available

emulated = pytest.mark.skipif(available() is not None, reason=available() or "")

ORDERS = ["forward", "reverse", "random"]
EXACT = {mx.float32: 1e-6, mx.bfloat16: 4e-3}  # relative L2 of a token's outputs
EPS = 1e-5
FORMATS = [affine(8, 64), affine(6, 64), affine(5, 32), affine(4, 64), MXFP4, None]


def error(
    factory: Factory | None,
    rows: int,
    inputs: int,
    tokens: int,
    spec: QuantizationSpec | None,
    dtype: mx.Dtype,
    plain: bool = False,
) -> float:
    """The worst token's relative L2, with norm, bias and residual unless plain; None: by MLX."""
    rng = np.random.default_rng(rows * inputs + tokens)
    case = random_case(rng, rows, inputs, spec, dtype)
    x, residual = normal(rng, dtype, tokens, inputs), normal(rng, dtype, tokens, rows)
    gain, bias = normal(rng, dtype, inputs), normal(rng, dtype, rows)
    run = op.quantized_matvec if factory is None else op.metal(factory)
    if plain:
        y, expected = run(x, case.matrix), exact(x) @ case.values.T
    else:
        y = run(x, case.matrix, bias, Norm(gain, EPS), residual)
        expected = normed(x, gain, EPS) @ case.values.T + exact(bias) + exact(residual)
    assert y.shape == (tokens, rows)
    assert y.dtype == dtype
    return worst_row(exact(y), expected)


def smallest(spec: QuantizationSpec | None, inputs: int) -> QuantizationSpec | None:
    """The spec in groups that divide the inputs."""
    if spec is None or inputs % spec.group_size == 0:
        return spec
    return QuantizationSpec(spec.bits, 32, spec.mode)


@pytest.mark.parametrize("spec", FORMATS)
@pytest.mark.parametrize("plain", [True, False])
def test_the_reference(spec: QuantizationSpec | None, plain: bool) -> None:
    assert error(None, 37, 192, 3, spec, mx.float32, plain) <= EXACT[mx.float32]


@emulated
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
@pytest.mark.parametrize(("inputs", "rows"), [(64, 71), (96, 69), (2880, 37), (4096, 33)])
def test_the_kernel(inputs: int, rows: int, tokens: int, dtype: mx.Dtype) -> None:
    spec = smallest(affine(8, 64), inputs)
    for order in ORDERS:
        factory = Emulator(check=True, order=order).metal_kernel
        assert error(factory, rows, inputs, tokens, spec, dtype) <= EXACT[dtype]


@pytest.mark.slow
@emulated
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(("inputs", "tokens"), [(96, 3), (2880, 1), (2880, 8)])
@pytest.mark.parametrize("spec", [affine(4, 64), affine(6, 64), affine(5, 64), MXFP4, None])
def test_the_kernel_in_other_formats(
    spec: QuantizationSpec | None, inputs: int, tokens: int, dtype: mx.Dtype
) -> None:
    for order in ORDERS:
        factory = Emulator(check=True, order=order).metal_kernel
        assert error(factory, 35, inputs, tokens, smallest(spec, inputs), dtype) <= EXACT[dtype]


@emulated
@pytest.mark.parametrize(
    "spec",
    [affine(b, g) for b in (4, 5, 6, 8) for g in (32, 128)] + [affine(b, 64) for b in (2, 3)],
)
@pytest.mark.slow
def test_every_width_and_group(spec: QuantizationSpec) -> None:
    factory = Emulator(check=True, order="random").metal_kernel
    assert error(factory, 41, 384, 2, spec, mx.float32, plain=True) <= EXACT[mx.float32]


@emulated
@pytest.mark.parametrize("inputs", [32, 5632, 8192])
def test_vectors_shorter_and_longer_than_what_is_held(inputs: int) -> None:
    factory = Emulator(check=True, order="random").metal_kernel
    assert error(factory, 37, inputs, 1, affine(8, 32), mx.float32) <= EXACT[mx.float32]


@emulated
def test_scales_in_another_dtype_than_the_vector() -> None:
    rng = np.random.default_rng(5)
    for dtype in (mx.float16, mx.float32):
        case = random_case(rng, 33, 128, affine(4, 64), dtype)
        x = normal(rng, mx.bfloat16, 2, 128)
        y = op.metal(Emulator(check=True).metal_kernel)(x, case.matrix)
        assert worst_row(exact(y), exact(x) @ case.values.T) <= EXACT[mx.bfloat16]


@pytest.mark.slow
@emulated
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_every_code_in_every_place(bits: int) -> None:
    """A vector with a single 1 finds each row's code there, exactly; so do MLX's operations."""
    count = 1 << bits
    codes = np.stack([(np.arange(32) * 37 + code) % count for code in range(count)])
    ones, zeros = mx.ones((count, 1)), mx.zeros((count, 1))
    matrix = Matrix(packed(codes.astype(np.uint8), bits), ones, zeros, affine(bits, 32))
    run = op.metal(Emulator(check=True).metal_kernel)
    for places in np.split(np.arange(32), 4):
        x = mx.array(np.eye(32, dtype=np.float32)[places])
        np.testing.assert_array_equal(np.array(run(x, matrix)), codes[:, places].T)
        np.testing.assert_array_equal(np.array(op.quantized_matvec(x, matrix)), codes[:, places].T)


@emulated
@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_small_and_large_vectors(factor: float) -> None:
    rng = np.random.default_rng(8)
    case = random_case(rng, 40, 96, affine(4, 32), mx.float32)
    x = normal(rng, mx.float32, 1, 96) * factor
    y = op.metal(Emulator(check=True).metal_kernel)(x, case.matrix)
    assert worst_row(exact(y), exact(x) @ case.values.T) <= EXACT[mx.float32]


@pytest.mark.parametrize("spec", FORMATS)
def test_the_references_logits_are_not_rounded_to_bfloat16(spec: QuantizationSpec | None) -> None:
    rng = np.random.default_rng(3)
    case, x = random_case(rng, 2100, 192, spec, mx.bfloat16), normal(rng, mx.bfloat16, 2, 192)
    y = op.quantized_matvec(x, case.matrix, dtype=mx.float32)
    assert y.dtype == mx.float32
    assert worst_row(exact(y), exact(x) @ case.values.T) <= EXACT[mx.float32]


@emulated
@pytest.mark.parametrize("spec", [affine(8, 64), None])
def test_the_kernels_logits_are_not_rounded_to_bfloat16(spec: QuantizationSpec | None) -> None:
    rng = np.random.default_rng(3)
    case, x = random_case(rng, 37, 2880, spec, mx.bfloat16), normal(rng, mx.bfloat16, 1, 2880)
    gain = normal(rng, mx.bfloat16, 2880)
    run = op.metal(Emulator(check=True).metal_kernel)
    y = run(x, case.matrix, None, Norm(gain, EPS), dtype=mx.float32)
    assert y.dtype == mx.float32
    assert worst_row(exact(y), normed(x, gain, EPS) @ case.values.T) <= EXACT[mx.float32]


@emulated
@pytest.mark.slow
def test_the_vocabulary() -> None:
    """201088 rows, of which every 500th is compared."""
    rng = np.random.default_rng(7)
    rows, inputs, chosen = 201_088, 2880, slice(None, None, 500)
    codes = rng.integers(0, 256, (rows, inputs), np.uint8)
    scales = mx.array(rng.uniform(0.5, 1, (rows, inputs // 64)).astype(np.float32))
    scales, biases = scales.astype(mx.bfloat16), (-128 * scales).astype(mx.bfloat16)
    matrix = Matrix(mx.array(codes.view("<u4")), scales, biases, affine(8, 64))
    x, gain = normal(rng, mx.bfloat16, 1, inputs), normal(rng, mx.bfloat16, inputs)
    run = op.metal(Emulator(check=False).metal_kernel)
    y = run(x, matrix, None, Norm(gain, EPS))
    scale, bias = (np.repeat(exact(a[chosen]), 64, axis=1) for a in (scales, biases))
    expected = normed(x, gain, EPS) @ (codes[chosen] * scale + bias).T
    assert worst_row(exact(y)[:, chosen], expected) <= EXACT[mx.bfloat16]


@emulated
def test_the_examples_agree_with_the_reference() -> None:
    run = op.metal(Emulator(check=True).metal_kernel)
    for arguments in op.examples(mx.float32):
        expected = exact(op.quantized_matvec(*arguments))
        assert worst_row(exact(run(*arguments)), expected) <= 2e-6


def refused(**_: Any) -> Any:
    def run(**_: Any) -> list[mx.array]:
        raise AssertionError("the kernel is not for this")

    return run


@pytest.mark.parametrize(
    ("rows", "inputs", "tokens", "spec"),
    [
        (5, 64, 9, affine(8, 64)),
        (9, 32, 2, QuantizationSpec(8, 32, "mxfp8")),
        (1, 32, 1, affine(8, 32)),
        (9, 48, 1, None),
    ],
)
def test_what_the_kernel_is_not_for_goes_to_the_reference(
    rows: int, inputs: int, tokens: int, spec: QuantizationSpec | None
) -> None:
    case = matrices.random_matrix(rows, inputs, spec, mx.float32)
    x = mx.ones((tokens, inputs))
    assert mx.array_equal(op.metal(refused)(x, case), op.quantized_matvec(x, case))
