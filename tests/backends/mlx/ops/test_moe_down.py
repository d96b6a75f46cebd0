"""down, its bias and the weighted sum against float64 dequantization by the definition."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.ops.moe_down import moe_down
from gptoss_mlx.backends.mlx.ops.routing import Routing
from tests.backends.mlx.ops.banks import bank, choices, normal
from tests.support.comparison import worst_row

EXACT = 3e-6  # relative L2 of a token's output: float32 sums of up to 2880 products


@pytest.mark.parametrize(
    ("intermediate", "hidden", "experts", "k"),
    [(32, 1, 1, 1), (96, 37, 5, 2), (64, 96, 8, 4), (2880, 11, 6, 4)],
)
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_the_weighted_sum_of_every_token(
    intermediate: int, hidden: int, experts: int, k: int, tokens: int
) -> None:
    rng = np.random.default_rng(intermediate + tokens)
    matrices = bank(rng, experts, hidden, intermediate)
    x, exact_x = normal(rng, tokens, k, intermediate)
    bias, exact_bias = normal(rng, experts, hidden)
    weights, exact_weights = normal(rng, tokens, k)
    chosen = choices(rng, tokens, k, experts)
    slots = rng.permutation(experts).astype(np.uint32)[chosen]
    y = moe_down(x, matrices.projection(bias), Routing(mx.array(slots), mx.array(chosen), weights))
    assert y.shape == (tokens, hidden)
    assert y.dtype == mx.float32
    each = np.einsum("tki,tkoi->tko", exact_x, matrices.matrices[slots]) + exact_bias[chosen]
    exact = (each * exact_weights[..., None]).sum(axis=1)
    # Where terms cancel, the error is that of the terms.
    terms = np.linalg.norm(each * exact_weights[..., None])
    assert np.linalg.norm(np.array(y) - exact) < EXACT * terms


def test_one_expert_twice_counts_twice_and_weight_zero_counts_nothing() -> None:
    rng = np.random.default_rng(5)
    matrices = bank(rng, 2, 9, 96)
    x, exact_x = normal(rng, 1, 3, 96)
    bias, exact_bias = normal(rng, 3, 9)
    experts, slots = mx.array([[2, 2, 0]], mx.uint32), mx.array([[1, 1, 0]], mx.uint32)
    weights = mx.array([[0.25, 0.5, 0.0]])
    y = moe_down(x, matrices.projection(bias), Routing(slots, experts, weights))
    first, second = (exact_x[0, j] @ matrices.matrices[1].T + exact_bias[2] for j in (0, 1))
    assert worst_row(np.array(y), (0.25 * first + 0.5 * second)[None]) < EXACT
