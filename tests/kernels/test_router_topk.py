"""The router's choice against sorting in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.kernels.router_topk import router_topk


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
