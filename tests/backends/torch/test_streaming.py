"""Experts brought when they are chosen: the bits of a resident bank, and failures that end well."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.backends import slots
from gptoss_mlx.backends import streaming as shared_streaming
from gptoss_mlx.cli.report import table
from gptoss_mlx.engine.events import FinishEvent, Timings
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files import pool, reader
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.plan.memory import make_plan
from gptoss_mlx.system.machine import Machine
from tests.support.backends import open_on
from tests.support.checkpoints import Shape
from tests.support.comparison import fresh
from tests.support.interrupts import Interrupt, everywhere
from tests.support.shapes import tokens

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from gptoss_mlx.backends.torch import streaming  # noqa: E402

SHAPE = Shape(3, 64, 64, 12, 3, 4, 2, 16, vocab=256, window=12)


@pytest.fixture(scope="module", autouse=True)
def watched() -> Iterator[None]:
    """Everything here proves, beside its own promise, that no buffer is given away in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(slots.DEBUG, "1")
        yield


@pytest.fixture(scope="module")
def model_of(checkpoint_of: Callable[..., Path]) -> Callable[[int], Any]:
    """Slots -> a model; each is opened once."""
    made: dict[int, Any] = {}

    def find(slots: int) -> Any:
        if slots not in made:
            made[slots] = open_on("torch", checkpoint_of(SHAPE), slots=slots)
        return made[slots]

    return find


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(3, 11), st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 9))
def test_any_slots_and_chunks_give_the_resident_bits(
    model_of: Callable[[int], Any], slots: int, chunks: list[int], seed: int
) -> None:
    few, whole = model_of(slots), model_of(12)
    states = few.new_state(), whole.new_state()
    for number, count in enumerate(chunks):
        ids = tokens(SHAPE.vocab, count, seed=seed + number)
        a, b = (m.evaluate(ids, s) for m, s in zip((few, whole), states, strict=True))
        np.testing.assert_array_equal(a, b)
    a, b = (m.decode([[7]], [s])[0] for m, s in zip((few, whole), states, strict=True))
    assert torch.equal(a, b)


def test_several_sequences_share_the_banks(model_of: Callable[[int], Any]) -> None:
    rows = []
    for model in (model_of(3), model_of(12)):
        states = [model.new_state() for _ in range(4)]
        rows.append([model.decode([[t], [9], [t + 3], [4]], states) for t in range(8)])
    for a, b in zip(*rows, strict=True):
        assert torch.equal(a, b)


def test_counts_add_up(checkpoint_of: Callable[..., Path]) -> None:
    model = open_on("torch", checkpoint_of(SHAPE), slots=6)
    fresh(model, tokens(SHAPE.vocab, 3))
    stats = model.stats()
    expert = sum(t.nbytes // 12 for t in _files(model))
    assert stats["slots"] == 6
    assert stats["bytes_read"] == stats["misses"] * expert > 0
    assert 3 * 3 <= stats["hits"] + stats["misses"] <= 3 * 9
    assert stats["stall"] > 0


def _files(model: Any) -> Any:
    return model.blocks[0].moe.experts._files


def test_more_experts_on_their_way_than_buffers(
    checkpoint_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "STAGED", 2)
    folder, ids = checkpoint_of(SHAPE), tokens(SHAPE.vocab, 40)
    few = open_on("torch", folder, slots=3)
    np.testing.assert_array_equal(fresh(few, ids), fresh(open_on("torch", folder), ids))
    assert len(few.streaming._buffers) == 2


def test_a_buffer_given_away_in_use_is_noticed(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the reads of a wave not waited for."""
    gate, preadv = threading.Event(), os.preadv

    def held(*arguments: Any) -> int:
        assert gate.wait(20)
        return preadv(*arguments)

    def opening(reader: FileReader) -> None:
        gate.set()
        stop(reader)

    stop = FileReader.stop
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", held)
        patch.setattr(pool.Tasks, "wait", lambda tasks: None)
        patch.setattr(FileReader, "stop", opening)
        with pytest.raises(AssertionError, match="is given away while it is in use"):
            layers.step(layers.few * 2, 2, 3)
    layers.check(1, 4)


def test_slots_used_on_two_streams_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(slots.DEBUG, "1")
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=next(streams))
    )
    streams = iter((7, 7, 8))
    shared = streaming.Streaming({}, FileReader([]), torch.device("cuda:0"), 1)
    shared.check_stream()
    shared.check_stream()
    with pytest.raises(AssertionError, match="on the streams 7 and 8"):
        shared.check_stream()


def test_a_read_error_ends_the_step_and_the_next_one_is_right(
    checkpoint_of: Callable[..., Path],
    model_of: Callable[[int], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = open_on("torch", checkpoint_of(SHAPE), slots=4), tokens(SHAPE.vocab, 20)
    calls = []
    preadv = os.preadv

    def failing(*arguments: Any) -> int:
        calls.append(1)
        if len(calls) == 5:
            raise OSError(5, "Input/output error")
        return preadv(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
            fresh(model, ids)
    np.testing.assert_array_equal(fresh(model, ids), fresh(model_of(12), ids))


class Layers:
    """Two layers on two slots and two buffers, and the resident banks beside them."""

    def __init__(self, folder: Path) -> None:
        models = open_on("torch", folder, slots=2), open_on("torch", folder)
        self.few, self.whole = ([b.moe.experts for b in model.blocks] for model in models)
        self.x = torch.ones(1, 32)

    @torch.inference_mode()
    def step(self, layers: Any, *chosen: int) -> list[torch.Tensor]:
        """A token that chooses two of five experts, through both layers."""
        logits = torch.zeros(1, 5)
        logits[0, list(chosen)] = 1.0
        return [layer(self.x, logits) for layer in layers]

    def check(self, *chosen: int) -> None:
        for a, b in zip(self.step(self.few, *chosen), self.step(self.whole, *chosen), strict=True):
            assert torch.equal(a, b)
        for few in self.few:
            assert len(few.table.slot_of) == 2  # of two: none is lost


@pytest.fixture
def layers(checkpoint_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Layers:
    monkeypatch.setattr(streaming, "STAGED", 2)
    return Layers(checkpoint_of(Shape(2, 32, 32, 5, 2, 2, 1, 16, vocab=64)))


MODULES = (streaming, shared_streaming, slots, reader, pool)


def test_an_interrupt_anywhere_in_a_streamed_step(layers: Layers) -> None:
    """Some hundred places, which is why it takes seconds."""
    turns, turn = [(0, 3), (1, 4)], 0
    for turn in everywhere(  # noqa: B020
        MODULES,
        lambda: layers.step(layers.few, *turns[turn % 2]),  # noqa: B023
    ):
        layers.check(*turns[turn % 2])
    assert turn > 100


def test_a_second_interrupt_anywhere_in_the_clearing_up(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While reads of the first call still run, into buffers that the next one may be given."""
    gate, abandon, preadv = threading.Event(), pool.Tasks.abandon, os.preadv
    settle, wait = streaming.Streaming._settle, pool.Tasks.wait
    at, second = 0, Interrupt(MODULES, 0)

    def held(*arguments: Any) -> int:
        assert gate.wait(20)
        return preadv(*arguments)

    def opening(tasks: pool.Tasks) -> bool:
        gate.set()
        return abandon(tasks)

    def interrupted(tasks: pool.Tasks) -> None:
        monkeypatch.setattr(pool.Tasks, "wait", wait)
        monkeypatch.setattr(streaming.Streaming, "_settle", settled)
        raise KeyboardInterrupt

    def settled(shared: streaming.Streaming) -> None:
        nonlocal second
        monkeypatch.setattr(streaming.Streaming, "_settle", settle)
        with Interrupt(MODULES, at) as second:
            settle(shared)

    monkeypatch.setattr(os, "preadv", held)
    monkeypatch.setattr(pool.Tasks, "abandon", opening)
    while at == 0 or second.came:
        gate.clear()
        monkeypatch.setattr(pool.Tasks, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            layers.step(layers.few[at % 2 :], 0, 3)
        layers.check(1, 4)
        at += 1
    assert at > 30


def test_a_changed_file_is_noticed(checkpoint_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_of(SHAPE), tmp_path / "copy"))
    model = open_on("torch", folder, slots=4)
    for path in folder.glob("*.safetensors"):
        os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match="was changed while in use"):
        fresh(model, tokens(SHAPE.vocab, 20))


@pytest.mark.parametrize("slots", [2, 13])
def test_slots_must_hold_one_tokens_experts(checkpoint_of: Callable[..., Path], slots: int) -> None:
    with pytest.raises(ValueError, match=f"{slots} slots are not within"):
        open_on("torch", checkpoint_of(SHAPE), slots=slots)


def test_the_command_shows_what_was_brought(checkpoint_of: Callable[..., Path]) -> None:
    """Its table takes what this backend counts, which knows no guesses."""
    model = open_on("torch", checkpoint_of(SHAPE), slots=6)
    fresh(model, tokens(SHAPE.vocab, 3))
    plan = make_plan(model.config, Machine("a CPU", 1 << 34, None, False, "torch"))
    plan = replace(plan, slots=6)
    finish = FinishEvent("stop", 3, 1, 0, Timings(1.0, 1.0, 1.0, 3, 0, 1))
    shown = table(finish, 1.0, plan, model.stats())
    assert "6 of 12 a layer in memory, hits" in shown
    assert "waited for\n" in shown
    assert "foreseen" not in shown
