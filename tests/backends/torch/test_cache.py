"""Rows of the cache: given out, given back, and each sequence's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_mlx.errors import CapacityError
from tests.support.backends import ROWS, open_on
from tests.support.checkpoints import Shape
from tests.support.comparison import fresh, relative_l2
from tests.support.interrupts import everywhere
from tests.support.shapes import tokens

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from gptoss_mlx.backends.torch import cache as cache_module  # noqa: E402

SHAPE = Shape(3, 64, 64, 6, 2, 4, 2, 16, vocab=256, window=12)


@pytest.fixture(scope="module")
def model(checkpoint_of: Callable[..., Path]) -> Any:
    return open_on("torch", checkpoint_of(SHAPE))


def test_as_many_sequences_as_rows_compute_together(model: Any) -> None:
    states = [model.new_state() for _ in range(ROWS + 1)]
    assert sorted(state.row for state in states[:ROWS]) == list(range(ROWS))
    with pytest.raises(CapacityError, match=f"opened for {ROWS} sequences at a time, not for 5"):
        model.decode([[1]] * (ROWS + 1), states)
    assert [state.offset for state in states] == [0] * (ROWS + 1)
    row = states[2].row
    states[2].close()
    states[2].close()  # once is enough
    assert states[ROWS].row == row
    for state in states:
        state.close()


@pytest.mark.parametrize("rows", [1, 2])
def test_sequences_take_turns_in_fewer_rows(rows: int, checkpoint_of: Callable[..., Path]) -> None:
    """Three of them, with snapshots and cuts while they are parked, each as if it were alone."""
    few, many = (open_on("torch", checkpoint_of(SHAPE), rows=n) for n in (rows, 3))
    found = []
    for model in (few, many):
        states, logits = [model.new_state() for _ in range(3)], []
        for i, state in enumerate(states):
            model.prefill(tokens(SHAPE.vocab, 4 + 8 * i, seed=i), state)
        held = [state.snapshot() for state in states]
        for turn in range(4):
            logits += [model.decode([[turn + i]], [state])[0] for i, state in enumerate(states)]
        held[1].restore()
        states[0].trim(5)
        logits += [model.decode([[7]], [state])[0] for state in states]
        logits += list(model.decode([[1]] * rows, states[-rows:]))
        found.append(logits)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_an_interrupt_anywhere_while_a_sequence_gives_way(model: Any) -> None:
    cache = type(model.cache)(model.config, 1, 32, model.dtype, model.device)
    states = [cache.new_state() for _ in range(2)]
    for state in states:
        _ = state.row
        state.offset = 3
        cache.arenas.fill_(states.index(state))
        cache.rings.fill_(states.index(state))
    points = 0
    for _ in everywhere([cache_module], lambda: states[0].row):  # the other one has it
        points += 1
        for i, state in enumerate(states):
            row = state.row
            assert torch.all(cache.arenas[:, row, :, :, :3] == i)
            assert torch.all(cache.rings[:, row] == i)
    assert points > 20


def test_a_sequence_nobody_holds_gives_its_row_back(model: Any) -> None:
    for _ in range(3 * ROWS):
        model.prefill([1, 2, 3], model.new_state())


def test_a_row_used_before_is_as_good_as_new(model: Any) -> None:
    ids = tokens(SHAPE.vocab, 40)
    first = fresh(model, ids)
    for seed in range(ROWS):
        model.prefill(tokens(SHAPE.vocab, 60, seed=seed), model.new_state())
    np.testing.assert_array_equal(fresh(model, ids), first)


@pytest.mark.parametrize("count", [1, 2, 3, ROWS])
def test_sequences_decoded_together_are_as_if_alone(model: Any, count: int) -> None:
    # Some inside the first window, some far past it; one not begun.
    prompts = [tokens(SHAPE.vocab, n, seed=n) for n in (30, 1, 12, 11)][:count]
    states = [model.new_state() for _ in prompts]
    for prompt, state in zip(prompts, states, strict=True):
        if prompt[:-1]:
            model.prefill(prompt[:-1], state)
    steps = [prompt[-1:] for prompt in prompts]
    for turn in range(15):
        rows = model.decode(steps, states)
        assert rows.shape == (count, SHAPE.vocab)
        steps = [[(7 * turn + i) % 256] for i in range(count)]
    for i, (prompt, state) in enumerate(zip(prompts, states, strict=True)):
        said = [(7 * turn + i) % 256 for turn in range(14)]
        assert state.offset == len(prompt) + 14
        alone = fresh(_other(model), [*prompt, *said])[-1]
        assert relative_l2(rows[i].numpy(), alone) < 1e-6


def _other(model: Any) -> Any:
    """The same weights with rows of its own."""
    twin = object.__new__(type(model))
    twin.__dict__ |= model.__dict__
    twin.cache = type(model.cache)(model.config, 1, model.cache.context, model.dtype, model.device)
    return twin


def test_the_context_can_be_filled_to_its_last_place(checkpoint_of: Callable[..., Path]) -> None:
    ids = tokens(SHAPE.vocab, 50)
    small = open_on("torch", checkpoint_of(SHAPE), context=50, rows=2)
    reference = fresh(small, ids)
    state = small.new_state()
    small.prefill(ids[:30], state)
    for i in range(30, 50):
        assert relative_l2(small.decode([[ids[i]]], [state])[0].numpy(), reference[i]) < 1e-6


def test_a_snapshot_is_the_rings_of_its_row_only(model: Any) -> None:
    state, other = model.new_state(), model.new_state()
    model.prefill(tokens(SHAPE.vocab, 20), state)
    model.prefill(tokens(SHAPE.vocab, 20, seed=1), other)
    held = state.snapshot()
    kept = model.cache.rings[:, other.row].clone()
    assert held.nbytes == 2 * 2 * 2 * 16 * 12 * 4  # layers, k and v, heads, width, window, float32
    model.prefill(tokens(SHAPE.vocab, 20, seed=2), state)
    held.restore()
    assert torch.equal(model.cache.rings[:, state.row], held.rings[0])
    assert torch.equal(model.cache.rings[:, other.row], kept)
    assert state.offset == 20
