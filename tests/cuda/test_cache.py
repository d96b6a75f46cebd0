"""Rows of the cache: given out, given back, and each sequence's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.make_checkpoint import Shape
from gptoss_mlx.errors import CapacityError
from tests.backends import ROWS, open_on
from tests.comparison import fresh, relative_l2
from tests.shapes import tokens

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SHAPE = Shape(3, 64, 64, 6, 2, 4, 2, 16, vocab=256, window=12)


@pytest.fixture(scope="module")
def model(checkpoint_of: Callable[..., Path]) -> Any:
    return open_on("torch", checkpoint_of(SHAPE))


def test_there_are_as_many_sequences_as_rows(model: Any) -> None:
    states = [model.new_state() for _ in range(ROWS)]
    assert sorted(state.row for state in states) == list(range(ROWS))
    with pytest.raises(CapacityError, match=f"opened for {ROWS} sequences at a time"):
        model.new_state()
    states[2].close()
    states[2].close()  # once is enough
    states.append(model.new_state())
    assert states[-1].row == states[2].row
    with pytest.raises(CapacityError):
        model.new_state()
    for state in states:
        state.close()


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
        rows = model.decode_many(steps, states)
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
        assert relative_l2(small.decode([ids[i]], state).numpy(), reference[i]) < 1e-6


def test_a_snapshot_is_the_rings_of_its_row_only(model: Any) -> None:
    state, other = model.new_state(), model.new_state()
    model.prefill(tokens(SHAPE.vocab, 20), state)
    model.prefill(tokens(SHAPE.vocab, 20, seed=1), other)
    held = state.snapshot()
    kept = model.cache.rings[:, other.row].clone()
    assert held.nbytes == 2 * 2 * 2 * 16 * 12 * 4  # layers, k and v, heads, width, window, float32
    model.prefill(tokens(SHAPE.vocab, 20, seed=2), state)
    state.restore(held)
    assert torch.equal(model.cache.rings[:, state.row], held.rings)
    assert torch.equal(model.cache.rings[:, other.row], kept)
    assert state.offset == 20
