"""Pairs grouped by slot, against a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from gptoss_mlx.backends.torch import reference  # noqa: E402
from gptoss_mlx.backends.torch.operands import Groups, most_tiles  # noqa: E402
from gptoss_mlx.backends.torch.triton import group_pairs as op  # noqa: E402

pytestmark = pytest.mark.torch

GROUPERS = [reference.group_pairs, op.group_pairs]
Grouper = Callable[[torch.Tensor, int, int], Groups]


def expected(
    visits: Sequence[int], slots: int, tile: int
) -> tuple[list[int], list[tuple[int, ...]]]:
    """order, and (slot, begin, end) of every tile in use."""
    order: list[int] = []
    tiles = []
    for slot in range(slots):
        pairs = [pair for pair, visited in enumerate(visits) if visited == slot]
        for i in range(0, len(pairs), tile):
            begin = len(order)
            order += pairs[i : i + tile]
            tiles.append((slot, begin, len(order)))
    return order, tiles


def check(grouper: Grouper, visits: np.ndarray, slots: int, tile: int) -> None:
    groups = grouper(torch.from_numpy(visits), slots, tile)
    columns = [groups.slot, groups.begin, groups.end]
    assert all(column.dtype == torch.int32 for column in (groups.order, *columns))
    assert groups.tile == tile
    order, tiles = expected(visits.flatten().tolist(), slots, tile)
    unused = most_tiles(visits.size, slots, tile) - len(tiles)
    assert unused >= 0
    assert groups.order.tolist() == order
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == (tiles + [(-1, 0, 0)] * unused)


@st.composite
def calls(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Visits of a few or of many pairs, on both sides of a block; some slots are never visited."""
    k = draw(st.integers(1, 5))
    tokens = draw(st.one_of(st.integers(1, 40), st.integers(1, 90)))
    slots = draw(st.one_of(st.integers(1, 9), st.integers(1, 300)))
    visited = draw(st.lists(st.integers(0, slots - 1), min_size=1, max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    visits = rng.choice(np.array(visited, np.int32), (tokens, k))
    return visits, slots, draw(st.sampled_from([1, 2, 3, 8, 16, 64, 200]))


@pytest.mark.parametrize("grouper", GROUPERS, ids=["reference", "triton"])
@settings(max_examples=80, deadline=None, derandomize=True)
@given(call=calls())
@example(call=(np.zeros((32, 4), np.int32), 1, 128))
@example(call=(np.full((32, 4), 255, np.int32), 256, 64))
@example(call=(np.full((129, 1), 256, np.int32), 257, 64))
def test_any_visits(grouper: Grouper, call: tuple[np.ndarray, int, int]) -> None:
    check(grouper, *call)


@pytest.mark.parametrize("pairs", [1, 127, 128, 129, 256, 257, 128 * 33 + 5])
def test_at_the_edges_of_blocks(pairs: int) -> None:
    visits = np.random.default_rng(pairs).integers(0, 128, (pairs, 1)).astype(np.int32)
    check(op.group_pairs, visits, 128, 16)


@pytest.mark.parametrize("pairs", [100, 200])
def test_visits_in_64_bits(pairs: int) -> None:
    check(op.group_pairs, np.random.default_rng(pairs).integers(0, 9, (pairs, 1)), 9, 16)


def test_a_prompts_chunk() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((2048, 128)) + 2 * rng.standard_normal(128)  # some are popular
    visits = np.argsort(-scores, axis=1)[:, :4].astype(np.int32)
    check(op.group_pairs, visits, 128, 64)


def test_strided_visits() -> None:
    visits = torch.from_numpy(np.random.default_rng(1).integers(0, 9, (50, 8)).astype(np.int32))
    for some in (visits[:, ::2], visits[:10, ::2]):
        found, same = (op.group_pairs(v, 9, 4) for v in (some, some.contiguous()))
        assert torch.equal(found.order, same.order)
        assert torch.equal(found.slot, same.slot)
