"""An interrupt or a fault at every point of our own code: the next request is as if it had not
come, nothing is lost, and no thread stays."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends import bank, guesses, loading, slots
from gptoss_mlx.backends import streaming as shared_streaming
from gptoss_mlx.backends.mlx import streaming, weights
from gptoss_mlx.backends.mlx.experts import ExpertBank
from gptoss_mlx.backends.mlx.streaming import StreamedExperts, Streaming
from gptoss_mlx.backends.mlx.weights import Loader
from gptoss_mlx.files import pool, reader
from gptoss_mlx.files.pool import Tasks
from gptoss_mlx.models import checkpoint as checkpoint_module
from gptoss_mlx.models.checkpoint import Checkpoint
from tests.support.backends import open_on
from tests.support.checkpoints import Shape
from tests.support.interrupts import Interrupt, everywhere, left_open

SHAPE = Shape(2, 32, 32, 5, 2, 2, 1, 16, vocab=64)
MODULES = (streaming, bank, shared_streaming, slots, guesses, reader, pool)


class Layers:
    """Two layers on three slots each, and the resident banks beside them."""

    def __init__(self, folder: Path) -> None:
        with Checkpoint.open(folder) as checkpoint, Loader(checkpoint, mx.float32) as loader:
            shared = Streaming(checkpoint.tensors, checkpoint.reader(), 3)
            config = checkpoint.config
            self.whole = [ExpertBank(config, loader, layer) for layer in range(2)]
            self.few = [
                StreamedExperts(ExpertBank(config, loader, layer, 3), shared) for layer in range(2)
            ]
            loader.finish()
        self.few[0].following = self.few[1]
        self.x, self.weights = mx.ones((1, SHAPE.hidden)), mx.full((1, 2), 0.5)

    def step(self, experts: list[int], guess: list[int]) -> list[Any]:
        """A token through both layers; what the second computes waits to be evaluated."""
        chosen, guessed = mx.array([experts]), mx.array([guess])
        return [self.few[i](self.x, chosen, self.weights, guessed) for i in range(2)]

    def check(self, experts: list[int]) -> None:
        for few, whole in zip(self.few, self.whole, strict=True):
            chosen = mx.array([experts])
            np.testing.assert_array_equal(
                np.array(few(self.x, chosen, self.weights)),
                np.array(whole(self.x, chosen, self.weights)),
            )
            held = {e: slot for slot, e in enumerate(few.table.expert_in) if e is not None}
            assert few.table.slot_of == held


@pytest.fixture
def layers(checkpoint_of: Callable[..., Path]) -> Layers:
    return Layers(checkpoint_of(SHAPE))


TURNS = [([0, 3], [4, 1]), ([1, 4], [3, 0])]
"""Experts of two steps, in three slots, and what each guesses of the next layer."""


def test_an_interrupt_anywhere_in_a_streamed_step(layers: Layers) -> None:
    """Nearly a thousand places, which is why it takes seconds."""
    turn = 0
    for turn in everywhere(MODULES, lambda: layers.step(*TURNS[turn % 2])):  # noqa: B020, B023
        layers.check(TURNS[turn % 2][0])
    assert turn > 300


def test_a_second_interrupt_anywhere_in_the_clearing_up(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a read of the first call still runs: it goes on when it is waited for, not before."""
    gate, abandon, preadv = threading.Event(), Tasks.abandon, os.preadv
    settle, wait = Streaming._settle, Tasks.wait
    at, second = 0, Interrupt(MODULES, 0)

    def held(*arguments: Any) -> int:
        assert gate.wait(20)
        return preadv(*arguments)

    def opening(tasks: Tasks) -> bool:
        gate.set()
        return abandon(tasks)

    def interrupted(tasks: Tasks) -> None:
        monkeypatch.setattr(Tasks, "wait", wait)
        monkeypatch.setattr(Streaming, "_settle", settled)
        raise KeyboardInterrupt

    def settled(shared: Streaming) -> None:
        nonlocal second
        monkeypatch.setattr(Streaming, "_settle", settle)
        with Interrupt(MODULES, at) as second:
            settle(shared)

    monkeypatch.setattr(os, "preadv", held)
    monkeypatch.setattr(Tasks, "abandon", opening)
    while at == 0 or second.came:
        gate.clear()
        monkeypatch.setattr(Tasks, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            layers.step(*TURNS[at % 2])
        layers.check(TURNS[1 - at % 2][0])
        layers.check(TURNS[at % 2][0])  # so that the next call has something to read
        at += 1
    assert at > 50


def test_no_thread_stays_when_the_layers_are_gone(checkpoint_of: Callable[..., Path]) -> None:
    before, layers = left_open(), Layers(checkpoint_of(SHAPE))
    layers.step(*TURNS[0])
    del layers
    assert left_open() <= before


@pytest.fixture
def folder(checkpoint_of: Callable[..., Path]) -> Iterator[Path]:
    """A checkpoint, while all that there was before needs no looking at by the collector."""
    folder = checkpoint_of(SHAPE)
    gc.collect()
    gc.freeze()
    yield folder
    gc.unfreeze()


def test_an_interrupt_anywhere_while_weights_are_loaded(folder: Path) -> None:
    names, before = ["model.norm.weight", "model.layers.0.self_attn.sinks"], left_open()
    found: list[mx.array] = []

    def load() -> None:
        with Checkpoint.open(folder) as checkpoint, Loader(checkpoint, mx.float32) as loader:
            arrays = [loader.dense(name) for name in names]
            loader.finish()
        found[:] = arrays

    points = [
        at for at in everywhere((weights, loading, reader, pool), load) if left_open() <= before
    ]
    assert points == list(range(len(points)))
    assert len(points) > 100
    assert [array.shape for array in found] == [(SHAPE.hidden,), (SHAPE.heads,)]


@pytest.mark.parametrize("library", ["mlx", "torch"])
def test_a_progress_that_raises_leaves_nothing(library: str, folder: Path) -> None:
    before = left_open()

    def progress(done: int, total: int) -> None:
        raise RuntimeError(f"{done} of {total}")

    with pytest.raises(RuntimeError, match=r"^\d+ of \d+$"):
        open_on(library, folder, progress=progress)
    assert left_open() <= before


@pytest.mark.slow
def test_an_interrupt_anywhere_while_scales_are_checked(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        before, check = left_open(), checkpoint.check_scales
        points = [
            at for at in everywhere((checkpoint_module, pool), check) if left_open() <= before
        ]
    assert points == list(range(len(points)))
    assert len(points) > 100
