"""The table of slots: both directions agree, what is kept stays, the least used goes."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.backends import slots as module
from gptoss_mlx.backends.slots import DECAY, SlotTable

EXPERTS = 6


def assert_agrees(table: SlotTable) -> None:
    seen = {expert: slot for slot, expert in enumerate(table.expert_in) if expert is not None}
    assert table.slot_of == seen
    assert len(seen) == sum(expert is not None for expert in table.expert_in)


def visit(table: SlotTable, chosen: Iterable[int]) -> list[int]:
    """A step as the runtime makes it -> the slots given to what was missing."""
    chosen = list(chosen)
    table.use(chosen)
    given = [table.claim(e, chosen) for e in chosen if e not in table.slot_of]
    assert None not in given
    return [slot for slot in given if slot is not None]


operations = st.one_of(
    st.tuples(st.just("use"), st.sets(st.integers(0, EXPERTS - 1), max_size=4)),
    st.tuples(st.just("claim"), st.sets(st.integers(0, EXPERTS - 1), max_size=EXPERTS)),
    st.tuples(st.just("release"), st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=1)),
)


@given(st.integers(1, EXPERTS), st.integers(0, EXPERTS - 1), st.lists(operations, max_size=40))
def test_both_directions_agree_and_what_is_kept_stays(
    slots: int, first: int, steps: list[tuple[str, set[int]]]
) -> None:
    table = SlotTable(EXPERTS, slots)
    for name, experts in steps:
        if name == "use":
            table.use(experts)
        elif name == "release":
            table.release(min(experts) % slots)
        elif (expert := (first + len(table.slot_of)) % EXPERTS) not in table.slot_of:
            before, empty = dict(table.slot_of), None in table.expert_in
            slot = table.claim(expert, keep=experts)
            assert (slot is None) == (not empty and set(before) <= experts)
            lost = {e for e in before if e not in table.slot_of}
            assert len(lost) == (slot is not None and not empty)
            assert not lost & experts
            assert (slot is None) == (expert not in table.slot_of)
            if slot is not None:
                assert table.slot_of[expert] == slot
        assert_agrees(table)
        assert len(table) == slots


steps_of = st.lists(
    st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=3).map(sorted), max_size=40
)


@given(st.integers(3, EXPERTS), steps_of)
def test_the_victim_is_the_least_used_in_the_lowest_slot(
    slots: int, steps: list[list[int]]
) -> None:
    """Against exact fractions: at decay 1/2, 40 steps fit a float."""
    table = SlotTable(EXPERTS, slots, decay=0.5)
    use = [Fraction(0)] * EXPERTS
    held: list[int | None] = [None] * slots
    for chosen in steps:
        use = [worth / 2 + (expert in chosen) for expert, worth in enumerate(use)]
        for expert in chosen:
            if expert not in held:
                slot = min(
                    (slot for slot in range(slots) if held[slot] not in chosen),
                    key=lambda s: (held[s] is not None, use[held[s] or 0], s),
                )
                held[slot] = expert
        visit(table, chosen)
        assert table.expert_in == held


def test_uses_fade_with_the_steps() -> None:
    table = SlotTable(4, 2, decay=0.5)
    for chosen in ([0], [0], [1], [3]):  # 0 now counts 1/8 + 1/4, 1 counts 1/2
        visit(table, chosen)
    assert set(table.slot_of) == {1, 3}
    slow = SlotTable(4, 2, decay=0.99)
    for chosen in ([0], [0], [1], [3]):
        visit(slow, chosen)
    assert set(slow.slot_of) == {0, 3}


@pytest.mark.parametrize("decay", [0.5, DECAY])
def test_rescaling_does_not_change_what_is_chosen(
    decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(limit: float) -> tuple[list[list[int]], float]:
        monkeypatch.setattr(module, "_RESCALE", limit)
        table = SlotTable(16, 8, decay)
        chosen = [sorted({step * 7 % 16, step * step % 16, step // 5 % 16}) for step in range(900)]
        return [visit(table, experts) for experts in chosen], table._weight

    often, small = run(10.0)
    never, large = run(float("inf"))
    assert often == never
    assert small <= 10.0
    assert large > 1e10


def test_a_long_run_stays_finite() -> None:
    table = SlotTable(8, 4, decay=0.5)
    for step in range(5000):  # 2 ** 5000 is far beyond a float
        visit(table, [step % 8, (step + 1) % 8])
    assert all(0 <= use < float("inf") for use in table._use)


@pytest.mark.parametrize("slots", [0, 9])
def test_slots_are_within_the_experts(slots: int) -> None:
    with pytest.raises(ValueError, match=f"{slots} slots are not within 1 to 8 experts"):
        SlotTable(8, slots)
