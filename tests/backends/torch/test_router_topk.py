"""The router's choice by the Triton kernels, against sorting in float64."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gptoss_mlx.backends.torch import reference  # noqa: E402
from gptoss_mlx.backends.torch.agreement import difference  # noqa: E402
from gptoss_mlx.backends.torch.triton import router_topk as op  # noqa: E402
from gptoss_mlx.backends.torch.triton.group_pairs import FEW  # noqa: E402

pytestmark = pytest.mark.torch


def normal(tokens: int, experts: int) -> np.ndarray:
    rng = np.random.default_rng(1000 * tokens + experts)
    return 3 * rng.standard_normal((tokens, experts), np.float32)


def exact(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    wide = logits.astype(np.float64)
    ids = np.argsort(-wide, axis=-1, kind="stable")[:, :k]
    shares = np.exp(np.take_along_axis(wide, ids, axis=-1))
    return ids, shares / shares.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("experts", "k"), [(32, 4), (128, 4), (37, 5), (1024, 8), (1025, 2), (20, 9), (4, 4), (1, 1)]
)
@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_the_largest_k_and_their_softmax(experts: int, k: int, tokens: int) -> None:
    logits = normal(tokens, experts)
    ids, weights = op.router_topk(torch.from_numpy(logits), k)
    assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
    expected, shares = exact(logits, k)
    np.testing.assert_array_equal(ids.numpy(), expected)
    np.testing.assert_allclose(weights.numpy(), shares, rtol=1e-6)


INF, NAN = float("inf"), float("nan")
FLOATS = [
    ([0.0] * 40, [0, 1, 2, 3]),
    ([-0.0, 0.0, -1.0, 0.0, -0.0], [0, 1, 3, 4]),
    ([-INF] * 33, [0, 1, 2, 3]),
    ([NAN] * 50, [0, 1, 2, 3]),
    ([1.0, INF, 2.0, 3.0, -INF], [1, 3, 2, 0]),
    ([1.0, 2.0, NAN, INF, -NAN, -INF], [2, 4, 3, 1]),
    ([1e-45, 0.0, 3e-45, -1e-45, -3e-45], [2, 0, 1, 3]),
    ([-3e38, 3e38, -1e-30, 1e-30], [1, 3, 2, 0]),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what numpy says of differences here
@pytest.mark.parametrize(("logits", "expected"), FLOATS)
def test_every_float_has_its_place_and_of_equals_the_lowest_comes_first(
    logits: list[float], expected: list[int]
) -> None:
    given = torch.tensor([logits])
    ids, weights = op.router_topk(given, 4)
    assert ids.tolist() == [expected]
    if np.isfinite(logits).all():
        assert float(weights.sum()) == pytest.approx(1)
    assert reference.router_topk(given, 4)[0].tolist() == [expected]
    assert op.route(given, 4, 2)[0].tolist() == [expected]


def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    _, weights = op.router_topk(torch.tensor([[1e4, -1e4, 300.0, 299.0]]), 2)
    assert weights.tolist() == [[1, 0]]


def test_strided_logits() -> None:
    logits = torch.from_numpy(normal(5, 64))[:, ::2]
    for found in (op.router_topk(logits, 4), op.route(logits, 4, 8)):
        assert torch.equal(found[0], reference.router_topk(logits, 4)[0])


@pytest.mark.parametrize(("experts", "k"), [(32, 4), (128, 4), (7, 3), (1, 1), (9, 8), (1025, 4)])
@pytest.mark.parametrize(("tokens", "tile"), [(1, 4), (2, 1), (5, 2), (32, 8)])
def test_a_route_is_the_choice_and_its_groups(tokens: int, tile: int, experts: int, k: int) -> None:
    check_route(tokens, tile, experts, k)


def check_route(tokens: int, tile: int, experts: int, k: int) -> None:
    logits = torch.from_numpy(normal(tokens, experts))

    def separate(logits: torch.Tensor, k: int) -> tuple[object, ...]:
        ids, weights = reference.router_topk(logits, k)
        return ids, weights, reference.group_pairs(ids, experts, tile)

    assert difference(lambda *a: op.route(*a, tile), separate, (logits, k)) < 1e-6


def test_32_tokens_of_4_experts_are_routed_in_one_launch() -> None:
    assert FEW >= 32 * 4


def test_more_tokens_are_routed_in_several() -> None:
    check_route(33, 4, 9, 4)
