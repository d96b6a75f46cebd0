"""gate_up and its SwiGLU against float64 dequantization by the definition."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.ops.moe_gate_up import moe_gate_up
from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection
from gptoss_mlx.backends.mlx.ops.routing import Routing
from tests.backends.mlx.ops.banks import bank, choices, normal
from tests.support.comparison import worst_row
from tests.support.numpy_gpt_oss import swiglu

LIMIT = 7.0
EXACT = 3e-6  # relative L2 of a token's output: float32 sums of up to 2880 products


@pytest.mark.parametrize(
    ("inputs", "intermediate", "experts", "k"),
    [(32, 1, 1, 1), (96, 37, 5, 2), (64, 96, 8, 4), (2880, 11, 6, 4)],
)
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_every_chosen_expert_of_every_token(
    inputs: int, intermediate: int, experts: int, k: int, tokens: int
) -> None:
    rng = np.random.default_rng(inputs + tokens)
    weights = bank(rng, experts, 2 * intermediate, inputs)
    x, exact_x = normal(rng, tokens, inputs)
    bias, exact_bias = normal(rng, experts, 2 * intermediate)
    chosen = choices(rng, tokens, k, experts)
    # Slots in any order: the matrices lie by slot, the biases by expert.
    slot_of = rng.permutation(experts).astype(np.uint32)
    slots = slot_of[chosen]
    routing = Routing(mx.array(slots), mx.array(chosen), mx.ones(slots.shape))
    y = moe_gate_up(x, weights.projection(bias), routing, LIMIT)
    assert y.shape == (tokens, k, intermediate)
    assert y.dtype == mx.float32
    h = np.einsum("ti,tkoi->tko", exact_x, weights.matrices[slots]) + exact_bias[chosen]
    exact = swiglu(h[..., 0::2], h[..., 1::2], LIMIT)
    assert worst_row(np.array(y).reshape(tokens, -1), exact.reshape(tokens, -1)) < EXACT


def test_gates_and_ups_beyond_the_limit_are_clamped_on_the_right_sides() -> None:
    # Zero weights: the bias alone decides. The gate is cut above only, the up on both sides.
    pairs = [(-90, 3), (-7.5, 0.5), (6.9, 6.9), (7, 7), (7.1, 7.1), (500, -500), (9, 800), (-3, -9)]
    bias = np.array(pairs, np.float32).reshape(1, -1)
    rows = bias.size
    zero = mx.zeros((1, rows, 4), mx.uint32), mx.full((1, rows, 1), 127, mx.uint8)
    first = mx.zeros((1, 1), mx.uint32)
    gate_up = Projection(*zero, mx.array(bias))
    y = moe_gate_up(mx.ones((1, 32)), gate_up, Routing(first, first, mx.ones((1, 1))), LIMIT)
    g, u = bias.astype(np.float64)[0, 0::2], bias.astype(np.float64)[0, 1::2]
    exact = np.minimum(g, 7) / (1 + np.exp(-1.702 * np.minimum(g, 7))) * (np.clip(u, -7, 7) + 1)
    np.testing.assert_allclose(np.array(y)[0, 0], exact, rtol=1e-6, atol=1e-30)


def test_one_slot_for_two_tokens_and_twice_for_one_token() -> None:
    rng = np.random.default_rng(3)
    weights = bank(rng, 3, 10, 64)
    x, exact_x = normal(rng, 2, 64)
    bias, exact_bias = normal(rng, 4, 10)
    experts, slots = np.array([[3, 3], [3, 0]], np.uint32), np.array([[2, 2], [2, 1]], np.uint32)
    routing = Routing(mx.array(slots), mx.array(experts), mx.ones(slots.shape))
    y = moe_gate_up(x, weights.projection(bias), routing, LIMIT)
    h = np.einsum("ti,tkoi->tko", exact_x, weights.matrices[slots]) + exact_bias[experts]
    exact = swiglu(h[..., 0::2], h[..., 1::2], LIMIT)
    assert worst_row(np.array(y).reshape(2, -1), exact.reshape(2, -1)) < EXACT
