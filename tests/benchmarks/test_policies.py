"""Cache policies: all keep what a step needs, none beats Belady, and Belady is the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.policies import LIMIT, POLICIES, PRODUCT, TableBank, loads
from gptoss_mlx.backends.slots import DECAY

NAMES = list(POLICIES)


@st.composite
def streams(draw: st.DrawFn, most: int = 8, steps: int = 60) -> tuple[list[list[int]], int, int]:
    """(experts of each step, number of experts, slots that a step fits)"""
    experts = draw(st.integers(2, most))
    k = draw(st.integers(1, min(4, experts)))
    slots = draw(st.integers(k, experts))
    chosen = st.lists(st.integers(0, experts - 1), min_size=k, max_size=k, unique=True)
    return draw(st.lists(chosen, max_size=steps)), experts, slots


@given(streams(), st.sampled_from(NAMES))
def test_a_step_loads_what_is_missing_and_all_of_it_is_held(
    stream: tuple[list[list[int]], int, int], name: str
) -> None:
    steps, experts, slots = stream
    bank = POLICIES[name](steps, experts, slots)
    for chosen in steps:
        before = set(bank.held)
        loaded = bank.visit(chosen)
        assert loaded == [expert for expert in chosen if expert not in before]
        assert set(chosen) <= set(bank.held) <= before | set(chosen)
        assert len(bank.held) == min(slots, len(before | set(chosen)))


@given(streams())
def test_none_beats_belady(stream: tuple[list[list[int]], int, int]) -> None:
    limit = sum(loads(POLICIES[LIMIT], *stream))
    for name, policy in POLICIES.items():
        assert sum(loads(policy, *stream)) >= limit, name


@given(streams(), st.sampled_from(NAMES))
def test_with_a_slot_for_each_expert_only_first_loads_remain(
    stream: tuple[list[list[int]], int, int], name: str
) -> None:
    steps, experts, _ = stream
    distinct = {expert for chosen in steps for expert in chosen}
    assert sum(loads(POLICIES[name], steps, experts, experts)) == len(distinct)


@given(streams(most=5, steps=7))
def test_belady_is_the_optimum(stream: tuple[list[list[int]], int, int]) -> None:
    assert sum(loads(POLICIES[LIMIT], *stream)) == fewest_loads(*stream)


def fewest_loads(steps: Sequence[Sequence[int]], experts: int, slots: int) -> int:
    """By trying every content of the bank after every step, loaded early or not."""
    cost = {frozenset[int](): 0}
    every = [
        frozenset(held) for size in range(slots + 1) for held in combinations(range(experts), size)
    ]
    for chosen in steps:
        cost = {
            held: min(spent + len(held - before) for before, spent in cost.items())
            for held in every
            if held.issuperset(chosen)
        }
    return min(cost.values())


def held_after(name: str, steps: list[list[int]], slots: int) -> set[int]:
    bank = POLICIES[name](steps, 6, slots)
    for chosen in steps:
        bank.visit(chosen)
    return set(bank.held)


STEPS = [[0], [0], [0], [1], [2], [3], [1], [1], [1], [1]]
"""Before 3 comes, 1 was used longest ago of 1 and 2, 2 as often as 1, and 0 most often."""


@pytest.mark.parametrize(
    ("name", "held"),
    [("LRU", {1, 2, 3}), ("LFU", {0, 1, 3}), ("most popular (oracle)", {0, 1, 3})],
)
def test_who_leaves_by_hand(name: str, held: set[int]) -> None:
    assert held_after(name, STEPS, 3) == held


def test_the_future_decides_by_hand() -> None:
    assert loads(POLICIES[LIMIT], STEPS, 6, 3) == [1, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert loads(POLICIES["LFU"], STEPS, 6, 3) == [1, 0, 0, 1, 1, 1, 1, 0, 0, 0]


@given(streams())
def test_every_policy_does_the_same_twice(stream: tuple[list[list[int]], int, int]) -> None:
    for name, policy in POLICIES.items():
        assert loads(policy, *stream) == loads(policy, *stream), name


def test_the_product_is_among_them() -> None:
    bank = POLICIES[PRODUCT]([], 8, 4)
    assert isinstance(bank, TableBank)
    assert f"table {DECAY:g}" == PRODUCT


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="2 slots"):
        loads(POLICIES[name], [[0, 1, 2]], 4, 2)
