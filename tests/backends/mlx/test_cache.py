"""The ring and the arena against a plain list of everything that was ever put in."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.cache import GROWTH, Arena, Ring, State

KV_HEADS, WIDTH = 2, 3
WINDOWS = st.sampled_from([1, 2, 3, 5, 16, 128])
CHUNKS = st.lists(st.one_of(st.just(1), st.integers(1, 9), st.integers(1, 300)), max_size=12)


def _tokens(values: list[int]) -> mx.array:
    """[1, heads, tokens, width] with numbers that tell token, head and dimension apart."""
    t = np.array(values, np.float32)[None, :, None]
    h = np.arange(KV_HEADS, dtype=np.float32)[:, None, None] / 4
    d = np.arange(WIDTH, dtype=np.float32)[None, None, :] / 16
    return mx.array((t + h + d)[None])


def _values(array: mx.array) -> list[int]:
    """The tokens an array of `_tokens` was made of."""
    found: NDArray[np.float32] = np.array(array)
    values = found[0, 0, :, 0].astype(int).tolist()
    np.testing.assert_array_equal(found, np.array(_tokens(values)))
    return list(values)


def _extend(layer: Arena | Ring, new: list[int], offset: int) -> list[int]:
    seen = layer.extend(mx.concatenate([_tokens(new), -_tokens(new)]), offset)
    np.testing.assert_array_equal(np.array(seen[0]), -np.array(seen[1]))
    return _values(seen[:1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(WINDOWS, CHUNKS)
def test_ring_shows_each_chunk_the_window_before_it(window: int, chunks: list[int]) -> None:
    ring, kept = Ring(window), list[int]()
    for length in chunks:
        new = list(range(len(kept) + 1, len(kept) + 1 + length))
        seen = _extend(ring, new, len(kept))
        if length > 1:
            earlier = kept[-(window - 1) :] if window > 1 else []
            assert seen == earlier + new
        else:  # in any order
            assert sorted(seen) == (kept + new)[-window:]
        kept += new
        assert [a.shape[3] for a in ring.arrays()] == [window]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_arena_shows_everything_and_forgets_from_any_offset(data: st.DataObject) -> None:
    arena, kept, number, largest = Arena(), list[int](), 0, 0
    for length in data.draw(CHUNKS):
        kept = kept[: data.draw(st.integers(0, len(kept)))] if data.draw(st.booleans()) else kept
        new = list(range(number + 1, number + 1 + length))
        number += length
        seen = _extend(arena, new, len(kept))
        kept = kept + new
        assert seen == kept
        largest = max(largest, len(kept))
        for buffer in arena.arrays():
            assert buffer.shape[2] == -(-largest // GROWTH) * GROWTH


def test_arena_keeps_its_buffers_while_tokens_fit() -> None:
    arena = Arena()
    _extend(arena, list(range(GROWTH - 1)), 0)
    size = sum(a.nbytes for a in arena.arrays())
    assert size == 2 * KV_HEADS * GROWTH * WIDTH * 4
    _extend(arena, [1], GROWTH - 1)
    assert sum(a.nbytes for a in arena.arrays()) == size
    _extend(arena, [2], GROWTH)
    assert sum(a.nbytes for a in arena.arrays()) == 2 * size


@settings(max_examples=40, deadline=None, derandomize=True)
@given(WINDOWS, CHUNKS, CHUNKS, CHUNKS)
def test_ring_put_back_is_as_it_was_held(
    window: int, before: list[int], between: list[int], after: list[int]
) -> None:
    ring, offset = Ring(window), 0
    for length in before:
        _extend(ring, list(range(offset, offset + length)), offset)
        offset += length
    held = ring.hold()
    was = None if held is None else np.array(held)
    for _ in range(2):  # the second time shows that the first left what is held alone
        at = offset
        for length in between:
            _extend(ring, [9999] * length, at)
            at += length
        ring.put_back(held)
        if held is not None and was is not None:
            np.testing.assert_array_equal(np.array(held), was)
        kept = list(range(offset))
        for length in after:
            new = list(range(len(kept), len(kept) + length))
            seen = _extend(ring, new, len(kept))
            kept += new
            assert sorted(seen) == kept[-(window + length - 1) :]
        ring.put_back(held)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.data())
def test_a_ring_not_yet_full_can_be_cut(window: int, data: st.DataObject) -> None:
    ring, length = Ring(window), data.draw(st.integers(1, window))
    _extend(ring, list(range(1, length + 1)), 0)
    kept = list(range(1, data.draw(st.integers(0, length)) + 1))
    for _ in range(4):
        new = list(range(1000, 1000 + data.draw(st.integers(1, 2 * window))))
        seen = _extend(ring, new, len(kept))
        kept = kept + new
        assert sorted(seen) == sorted(kept[-(window + len(new) - 1) :])


def _filled(tokens: int, window: int = 8) -> State:
    state = State([True, False, True], window)
    for layer in state.layers:
        _extend(layer, list(range(tokens)), 0)
    state.offset = tokens
    return state


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 1000])
def test_a_snapshot_takes_the_rings_bytes_at_any_length(tokens: int) -> None:
    rings = 2 * 2 * KV_HEADS * 8 * WIDTH * 4
    assert _filled(tokens).snapshot().nbytes == rings


def test_an_empty_state_takes_and_snapshots_nothing() -> None:
    state = State([True, False], 8)
    assert state.nbytes == 0
    assert state.arrays() == []
    snapshot = state.snapshot()
    assert (snapshot.nbytes, snapshot.offset) == (0, 0)
    for layer in state.layers:
        _extend(layer, [1, 2, 3], 0)
    state.offset = 3
    snapshot.restore()
    assert state.offset == 0
    for layer in state.layers:
        assert _extend(layer, [4, 5], 0) == [4, 5]


def test_state_counts_all_its_buffers() -> None:
    rings, arena = 2 * 2 * KV_HEADS * 8 * WIDTH * 4, 2 * KV_HEADS * GROWTH * WIDTH * 4
    assert _filled(100).nbytes == rings + arena
    assert len(_filled(100).arrays()) == 3


@pytest.mark.parametrize(
    ("held", "to", "possible"),
    [
        (8, 8, True),
        (8, 0, True),
        (8, 7, True),
        (5, 2, True),
        (9, 9, True),
        (9, 8, True),
        (9, 7, False),
        (9, 0, False),
        (500, 499, True),
        (500, 498, False),
        (5, 6, False),
        (5, -1, False),
        (0, 0, True),
        (0, 1, False),
    ],
)
def test_trim_refuses_what_the_rings_have_overwritten(held: int, to: int, possible: bool) -> None:
    state = _filled(held) if held else State([True], 8)
    assert state.can_trim(to) is possible
    if possible:
        state.trim(to)
        assert state.offset == to
    else:
        with pytest.raises(ValueError, match=f"from {held} to {to}"):
            state.trim(to)
        assert state.offset == held


def test_restore_refuses_a_snapshot_beyond_the_state() -> None:
    state = _filled(6)
    snapshot = state.snapshot()
    state.trim(5)
    with pytest.raises(ValueError, match="snapshot at 6, but the state ends at 5"):
        snapshot.restore()
    assert state.offset == 5
