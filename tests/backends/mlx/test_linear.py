"""A projection in every form against float64."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.linear import Linear
from gptoss_mlx.backends.mlx.ops.matrix import Matrix
from gptoss_mlx.spec.config import QuantizationSpec
from tests.support.comparison import relative_l2

SEED = 4


@pytest.mark.parametrize("tokens", [1, 2, 33])
@pytest.mark.parametrize("biased", [False, True])
def test_dense(tokens: int, biased: bool) -> None:
    rng = np.random.default_rng(SEED)
    x, w = (rng.standard_normal(s, np.float32) for s in ((tokens, 96), (37, 96)))
    b = rng.standard_normal(37, np.float32)
    y = Linear(Matrix(mx.array(w)), mx.array(b) if biased else None)(mx.array(x))
    assert y.shape == (tokens, 37)
    assert y.dtype == mx.float32
    exact = x.astype(np.float64) @ w.T.astype(np.float64) + (b if biased else 0)
    assert relative_l2(np.array(y), exact) < 1e-6


def test_dense_bfloat16_stays_bfloat16() -> None:
    ones = mx.ones((3, 64), dtype=mx.bfloat16)
    y = Linear(Matrix(mx.ones((5, 64), dtype=mx.bfloat16)), mx.ones((5,), dtype=mx.bfloat16))(ones)
    assert y.dtype == mx.bfloat16
    assert (y == 65).all().item()


def test_dense_input_that_is_a_view() -> None:
    rng = np.random.default_rng(SEED)
    x, w = (rng.standard_normal(s, np.float32) for s in ((10, 64), (5, 32)))
    y = Linear(Matrix(mx.array(w)))(mx.array(x)[::2, ::2])
    assert relative_l2(np.array(y), x[::2, ::2].astype(np.float64) @ w.T) < 1e-6


@pytest.mark.parametrize(
    "spec",
    [
        QuantizationSpec(8, 64, "affine"),
        QuantizationSpec(4, 32, "affine"),
        QuantizationSpec(4, 32, "mxfp4"),
        QuantizationSpec(8, 32, "mxfp8"),
        QuantizationSpec(4, 16, "nvfp4"),
    ],
    ids=lambda spec: f"{spec.mode}{spec.bits}_{spec.group_size}",
)
def test_quantized(spec: QuantizationSpec) -> None:
    rng = np.random.default_rng(SEED)
    x, w = (mx.array(rng.standard_normal(s, np.float32)) for s in ((5, 128), (41, 128)))
    b = mx.array(rng.standard_normal(41, np.float32))
    form: Any = {"group_size": spec.group_size, "bits": spec.bits, "mode": spec.mode}
    weight, scales, *rest = mx.quantize(w, **form)
    biases = rest[0] if rest else None
    y = Linear(Matrix(weight, scales, biases, spec), b)(x)
    # test_model compares with values dequantized by hand; here it is about the wiring.
    dense = np.array(mx.dequantize(weight, scales, biases, **form).astype(mx.float32))
    exact = np.array(x).astype(np.float64) @ dense.T + np.array(b)
    assert relative_l2(np.array(y), exact) < 1e-6
