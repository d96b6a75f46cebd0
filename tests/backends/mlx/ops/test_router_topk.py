"""The router's choice against sorting in float64, by MLX's operations and by the Metal kernel."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.ops import router_topk as op
from gptoss_mlx.backends.mlx.ops.router_topk import router_topk
from tests.support.metal_emulator import Emulator, available

emulated = pytest.mark.skipif(available() is not None, reason=available() or "")


@pytest.mark.parametrize(("experts", "k"), [(4, 4), (5, 1), (32, 4), (128, 4), (7, 3), (1, 1)])
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_the_largest_k_and_their_softmax(experts: int, k: int, tokens: int) -> None:
    logits = np.random.default_rng(experts).standard_normal((tokens, experts), np.float32) * 3
    ids, weights = (np.array(a) for a in router_topk(mx.array(logits), k))
    assert ids.dtype == np.uint32
    assert ids.shape == weights.shape == (tokens, k)
    for row, chosen, shares in zip(logits.astype(np.float64), ids, weights, strict=True):
        assert set(chosen) == set(np.argsort(row)[-k:])
        exact = np.exp(row[chosen]) / np.exp(row[chosen]).sum()
        np.testing.assert_allclose(shares, exact, rtol=1e-6)


def test_equal_logits_give_distinct_experts_of_equal_weight() -> None:
    ids, weights = (np.array(a) for a in router_topk(mx.zeros((3, 8)), 4))
    assert all(len(set(row)) == 4 for row in ids)
    assert (weights == 0.25).all()


def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    _, weights = router_topk(mx.array([[1e4, -1e4, 300.0, 299.0]]), 2)
    np.testing.assert_array_equal(np.sort(np.array(weights)[0]), [0, 1])


def test_bfloat16_softmax_is_computed_in_float32() -> None:
    logits = mx.array([[3.0, 2.0, 1.0, 0.5, -1.0]]).astype(mx.bfloat16)
    ids, weights = router_topk(logits, 4)
    assert weights.dtype == mx.bfloat16
    row = np.array(logits.astype(mx.float32))[0].astype(np.float64)[np.array(ids)[0]]
    exact = np.exp(row) / np.exp(row).sum()
    np.testing.assert_allclose(np.array(weights.astype(mx.float32))[0], exact, rtol=2**-8)


def test_the_largest_comes_first_and_of_equals_the_lowest() -> None:
    ids, _ = router_topk(mx.array([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0]]), 4)
    assert np.array(ids).tolist() == [[1, 3, 2, 4]]


def chosen(logits: mx.array, k: int, order: str = "random") -> tuple[np.ndarray, np.ndarray]:
    """The kernel's ids, and its weights in float64."""
    run = op.metal(Emulator(check=True, order=order).metal_kernel)
    ids, weights = run(logits, k)
    assert (ids.dtype, weights.dtype) == (mx.uint32, logits.dtype)
    return np.array(ids), np.array(weights.astype(mx.float32)).astype(np.float64)


@emulated
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(
    ("experts", "k"), [(32, 4), (128, 4), (37, 5), (1024, 8), (4, 4), (70, 40), (1, 1)]
)
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
def test_the_kernel(experts: int, k: int, tokens: int, dtype: mx.Dtype) -> None:
    logits = np.random.default_rng(experts + tokens).standard_normal((tokens, experts), np.float32)
    given = mx.array(3 * logits).astype(dtype)
    rows = np.array(given.astype(mx.float32)).astype(np.float64)
    expected = np.argsort(-rows, axis=-1, kind="stable")[:, :k]
    shares = np.exp(np.take_along_axis(rows, expected, axis=-1))
    shares /= shares.sum(axis=-1, keepdims=True)
    for order in ["forward", "reverse", "random"]:
        ids, weights = chosen(given, k, order)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_allclose(weights, shares, rtol=1e-6 if dtype == mx.float32 else 2**-8)


@emulated
@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0.0] * 40, [0, 1, 2, 3]),
        ([-0.0, 0.0, -1.0, 0.0, -0.0], [0, 1, 3, 4]),
        ([-np.inf] * 33, [0, 1, 2, 3]),
        ([np.nan, 1.0, np.nan, -np.inf, 2.0], [4, 1, 3, 0]),
        ([np.nan] * 50, [0, 1, 2, 3]),
        ([1.0, np.inf, 2.0, 3.0, -np.inf], [1, 3, 2, 0]),
        ([1e-45, 0.0, 3e-45, -1e-45, -3e-45], [2, 0, 1, 3]),
        ([-3e38, 3e38, -1e-30, 1e-30], [1, 3, 2, 0]),
    ],
)
def test_the_kernel_orders_every_float(logits: list[float], expected: list[int]) -> None:
    ids, weights = chosen(mx.array([logits]), 4)
    assert ids.tolist() == [expected]
    if np.isfinite(logits).all():
        assert weights.sum() == pytest.approx(1)


@emulated
def test_the_examples_agree_with_the_reference() -> None:
    for dtype in (mx.float32, mx.bfloat16):
        for logits, k in op.examples(dtype):
            ids, _ = chosen(logits, k)
            np.testing.assert_array_equal(ids, np.array(router_topk(logits, k)[0]))
