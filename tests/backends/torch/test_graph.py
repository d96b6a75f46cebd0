"""A step replayed from fixed buffers; the capture itself, which needs a card, is played here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import open_on
from tests.support.checkpoints import Shape
from tests.support.shapes import tokens

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from gptoss_mlx.backends.torch.graph import BUCKETS, Graph, Graphs, bucket  # noqa: E402

SHAPE = Shape(2, 64, 64, 6, 2, 4, 2, 16, vocab=256, window=12)


class Played(Graphs):
    """As CUDA does it: a graph reads and writes the addresses it was captured with."""

    captured: list[int]

    def capture(self, ids: Any, where: Any) -> Graph:
        self.captured = [*getattr(self, "captured", []), len(ids)]
        ids, where = ids.clone(), where.clone()
        logits = self.step(ids, where)

        def replay() -> None:
            logits.copy_(self.step(ids, where))

        return Graph(ids, where, logits, replay)


@pytest.fixture
def model(checkpoint_of: Callable[..., Path]) -> Any:
    return open_on("torch", checkpoint_of(SHAPE), rows=7, context=64)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_replayed_steps_are_the_steps(model: Any, count: int) -> None:
    eager, played = model._step, Played(model._step, model.device)
    found = []
    for step in (eager, played):
        model._step = step
        states = [model.new_state() for _ in range(count)]
        for i, state in enumerate(states):
            model.prefill(tokens(SHAPE.vocab, 5 + 4 * i, seed=i), state)
        found.append([model.decode([[t + i] for i in range(count)], states) for t in range(20)])
        for state in states:
            state.close()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert played.captured == [bucket(count)]


def test_each_bucket_is_captured_once(model: Any) -> None:
    model._step = played = Played(model._step, model.device)
    states = [model.new_state() for _ in range(7)]
    for count in (1, 2, 3, 4, 5, 7, 1, 4):
        model.decode([[1]] * count, states[:count])
    assert played.captured == [1, 2, 4, 8]


def test_logits_stay_when_another_stream_takes_a_step(model: Any) -> None:
    model._step = Played(model._step, model.device)
    one, other = model.new_state(), model.new_state()
    first = model.decode([[5]], [one])[0]
    was = first.clone()
    model.decode([[9]], [other])[0]
    assert torch.equal(first, was)


def test_every_number_of_sequences_has_a_bucket() -> None:
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 32)] == [
        1, 2, 4, 4, 8, 8, 16, 16, 32, 32,
    ]  # fmt: skip
    assert BUCKETS[-1] == 32
