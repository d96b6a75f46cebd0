"""Tokens written one by one into pages, among chunks, against a plain list of what was put in."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.backends.mlx.cache import Arena, Ring, State
from gptoss_mlx.backends.mlx.ops.place import Spot, anywhere, places
from gptoss_mlx.backends.mlx.pages import Row
from gptoss_mlx.backends.state import Copied, RingSnapshot
from gptoss_mlx.plan.buffers import GROWTH, PAGE
from tests.backends.mlx.test_cache import KV_HEADS, WIDTH, _extend, _tokens, _values

LIKE = mx.zeros((2, KV_HEADS, 0, WIDTH))
TOKEN = 2 * KV_HEADS * WIDTH * 4  # bytes
WINDOW = 8


def _decode(layer: Arena | Ring, value: int, offset: int) -> list[int]:
    """What a token sees that is written as the kernels do it."""
    held, slot, count = layer.spot(offset)
    arena, page = layer.arena(LIKE), mx.array(layer.page(LIKE).page)
    assert page.shape[2] == (layer.window if isinstance(layer, Ring) else PAGE)
    page[..., slot : slot + 1, :] = mx.concatenate([_tokens([value]), -_tokens([value])])
    layer.put(Row(page[None], 0))
    seen = page[..., :count, :]
    if held:
        seen = mx.concatenate([arena[..., :held, :], seen], axis=2)
    assert mx.array_equal(seen[:1], -seen[1:]).item()
    return _values(seen[:1])


def _append(state: State, kept: list[int], new: list[int]) -> None:
    """A chunk at once, or a single token; checks what every layer shows."""
    for layer in state.layers:
        assert isinstance(layer, Arena | Ring)
        if len(new) == 1:
            seen = _decode(layer, new[0], len(kept))
        else:
            seen = _extend(layer, new, len(kept))
        if isinstance(layer, Arena):
            assert seen == kept + new
        else:
            assert sorted(seen) == (kept + new)[-(WINDOW + len(new) - 1) :]
    state.offset += len(new)


def _copied(
    state: State, last: RingSnapshot[mx.array], snapshots: list[RingSnapshot[mx.array]]
) -> tuple[State, list[RingSnapshot[mx.array]]]:
    """A state made of segments that end where snapshots are, up to the last; the old one goes."""
    by_end = {s.offset: s for s in snapshots if 0 < s.offset < last.offset}
    segments: list[Copied[mx.array]] = []
    for snapshot in [*(by_end[end] for end in sorted(by_end)), last]:
        if snapshot.offset:
            segments.append(state.segment(segments[-1].end if segments else 0, snapshot))
    copy = State([True, False, False], WINDOW)
    if segments:
        copy.restore(segments)
    state.close()
    return copy, [copy.recall(segment) for segment in segments]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("one by one"), st.one_of(st.integers(1, 9), st.integers(1, 2 * PAGE))),
        st.tuples(st.just("chunk"), st.integers(2, 300)),
        st.tuples(st.just("snapshot"), st.just(0)),
        st.tuples(st.just("restore"), st.integers(0, 5)),
        st.tuples(st.just("trim"), st.integers(0, WINDOW)),
        st.tuples(st.just("cut"), st.integers(0, 100)),
        st.tuples(st.just("forget one"), st.just(0)),
        st.tuples(st.just("copy"), st.integers(0, 5)),
    ),
    max_size=9,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(STEPS)
def test_whatever_is_forgotten_the_rest_is_seen(steps: list[tuple[str, int]]) -> None:
    state, kept, number = State([True, False, False], WINDOW), list[int](), 0
    snapshots: list[RingSnapshot[mx.array]] = []
    for step, n in steps:
        if step == "snapshot":
            snapshots.append(state.snapshot())
        elif step == "restore" and snapshots:
            snapshot = snapshots[n % len(snapshots)]
            snapshot.restore()
        elif step == "trim" and state.can_trim(n):
            state.trim(n)
        elif step == "forget one" and state.offset and state.can_trim(state.offset - 1):
            state.trim(state.offset - 1)
        elif step == "copy" and snapshots and len(state.layers) == 3:
            state, snapshots = _copied(state, snapshots[n % len(snapshots)], snapshots)
        elif step == "cut":  # without rings an arena alone may forget from anywhere
            state.layers = [layer for layer in state.layers if isinstance(layer, Arena)]
            state.offset = max(0, state.offset - n)
            snapshots.clear()
        kept = kept[: state.offset]
        snapshots = [s for s in snapshots if s.offset <= len(kept)]
        chunks = {"one by one": [1] * n, "chunk": [n]}.get(step, [])
        for length in chunks:
            new = list(range(number + 1, number + 1 + length))
            number += length
            _append(state, kept, new)
            kept += new


def test_a_state_counts_its_pages() -> None:
    state = State([True, False, False], WINDOW)
    _append(state, [], [1, 2])
    assert state.nbytes == TOKEN * (WINDOW + 2 * GROWTH)
    _append(state, [1, 2], [3])
    assert state.nbytes == TOKEN * (WINDOW + 2 * GROWTH + 2 * PAGE)
    assert len(state.arrays()) == 5


def test_a_first_token_needs_no_chunk_before_it() -> None:
    state = State([True, False], WINDOW)
    _append(state, [], [1])
    assert state.nbytes == TOKEN * (WINDOW + GROWTH + PAGE)


def test_arenas_take_their_pages_in_at_different_steps() -> None:
    state, kept = State([False] * 12, WINDOW), [0, 1]
    _append(state, [], kept)
    held, written = [2] * 12, Counter[int]()
    for value in range(2, 2 + 2 * PAGE):
        for i, layer in enumerate(state.layers):
            assert isinstance(layer, Arena)
            spot = layer.spot(value)
            written[value] += spot.held != held[i]
            held[i] = spot.held
        _append(state, kept, [value])
        kept = [*kept, value]
    assert max(written.values()) == 1
    assert sum(written.values()) == 24


def test_a_step_has_one_table_of_places() -> None:
    state, kept = State([True, False, False], WINDOW), list(range(1, 20))
    _append(state, [], kept)
    _append(state, kept, [20])
    found = places([20, 5], [state.spots(), [Spot(0, 1, 2), Spot(1100, 3, 4), Spot(9, 8, 7)]])
    assert all(place.table is found[0].table for place in found)
    assert np.array(found[0].table).tolist() == [
        [[20, 0, 4, 8, 1], [20, 19, 1, 2, 1], [20, 19, 1, 2, 1]],
        [[5, 0, 1, 2, 1], [5, 1100, 3, 4, 4], [5, 9, 8, 7, 1]],
    ]
    assert [place.layer.item() for place in found] == [0, 1, 2]
    assert [place.spots[0] for place in found] == [Spot(0, 4, 8), Spot(19, 1, 2), Spot(19, 1, 2)]
    assert all(place.paged for place in found)
    assert not anywhere(20).paged
    assert np.array(anywhere(20).table)[:, 0].tolist() == [[20, 0, 0, 0, 1]]


def test_a_copy_has_what_lies_in_pages_and_the_rings_of_its_end() -> None:
    state, kept, snapshots = State([True, False, False], WINDOW), list[int](), []
    for lengths in ([70], [1] * 20, [1] * 5):
        for length in lengths:
            new = list(range(len(kept) + 1, len(kept) + 1 + length))
            _append(state, kept, new)
            kept += new
        snapshots.append(state.snapshot())
    copy, _ = _copied(state, snapshots[1], snapshots)
    assert copy.offset == 90
    for length in (1, 1, 3, 1):
        new = list(range(500 + copy.offset, 500 + copy.offset + length))
        _append(copy, [*kept[:90], *range(590, 500 + copy.offset)], new)


def test_rings_that_are_ahead_stay_so_in_a_snapshot_and_in_a_copy() -> None:
    state, kept = State([True, False, False], WINDOW), list(range(1, 2 * WINDOW))
    _append(state, [], kept)
    snapshot = state.snapshot(back=1)
    segment = state.segment(0, snapshot)
    snapshot.restore()
    copy = State([True, False, False], WINDOW)
    copy.restore([segment])
    for other in (state, copy):
        assert other.offset == len(kept) - 1
        assert not other.can_trim(other.offset - 1)
        _append(other, kept[:-1], [99])
        assert other.can_trim(other.offset - 1)
