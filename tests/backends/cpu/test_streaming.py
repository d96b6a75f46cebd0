"""Streamed experts on a CPU: bit for bit a resident bank's output, whatever is read when, or fails
to be."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_mlx.backends import bank, guesses, slots
from gptoss_mlx.backends import streaming as shared_streaming
from gptoss_mlx.backends.bank import PrefetchStreaming
from gptoss_mlx.backends.cpu import library, streaming
from gptoss_mlx.backends.cpu.experts import ExpertBank
from gptoss_mlx.backends.cpu.model import open_model
from gptoss_mlx.backends.cpu.step import Buffers
from gptoss_mlx.backends.cpu.streaming import StreamedExperts
from gptoss_mlx.backends.cpu.weights import Loader
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files import pool, reader
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.plan.cpu_buffers import own_bytes, shared_bytes
from tests.support.checkpoints import Shape
from tests.support.interrupts import everywhere
from tests.support.readers import FailingReader, ScriptedReader

pytestmark = pytest.mark.skipif(
    library.why_missing() is not None, reason="the kernels were not built"
)

SHAPE = Shape(2, 64, 32, 9, 4, 4, 2, 16, vocab=64)
EXPERTS, K, TOKENS = SHAPE.experts, SHAPE.active, 40
OURS = (streaming, bank, shared_streaming, slots, guesses, reader, pool)
Array: TypeAlias = NDArray[Any]


class Layers:
    """Two layers, their experts in `size` slots, and resident banks beside them."""

    def __init__(self, folder: Path, size: int, files: Any = None) -> None:
        with Checkpoint.open(folder) as checkpoint:
            config = checkpoint.config
            shared = PrefetchStreaming(checkpoint.tensors, files or checkpoint.reader(), size)
            with Loader(checkpoint) as loader:
                norm = np.ones(config.hidden_size, np.float32)
                banks = [
                    [ExpertBank(config, loader, i, norm, n) for i in (0, 1)] for n in (size, None)
                ]
                loader.finish()
        self.whole = banks[1]
        self.few = [StreamedExperts(few, shared) for few in banks[0]]
        self.few[0].following = self.few[1]
        self.counts = shared.counts
        self.buffers = Buffers(config, TOKENS, TOKENS, 64)
        threads, own = 2, own_bytes(config)
        self.device = library.Device(
            library.choose_variant(), threads, own, shared_bytes(config, TOKENS)
        )

    def load(self, chosen: Array, seed: int = 0) -> None:
        """A step's input and routing."""
        rng, n = np.random.default_rng(seed), len(chosen)
        self.buffers.x[:n] = rng.standard_normal((n, SHAPE.hidden))
        self.buffers.weights[:n] = rng.random((n, K))
        self.buffers.ids[:n] = chosen

    def step(self, layer: int, chosen: Array, guess: Array | None = None, seed: int = 0) -> Array:
        """Each visit's output -> [visits, hidden]"""
        self.load(chosen, seed)
        self.few[layer].visit(self.device, self.buffers, len(chosen), guess)
        return self.buffers.out[: chosen.size].copy()

    def wanted(self, layer: int, chosen: Array, seed: int = 0) -> Array:
        """The same of the resident bank."""
        self.load(chosen, seed)
        whole, n = self.whole[layer], len(chosen)
        call = whole.visits(self.buffers, n, chosen.size, self.buffers.ids)
        self.device.moe_gate_up(self.device.handle, ctypes.byref(call))
        self.device.moe_down(self.device.handle, ctypes.byref(call))
        return self.buffers.out[: chosen.size].copy()

    def check(self, layer: int, chosen: Array) -> None:
        np.testing.assert_array_equal(self.step(layer, chosen), self.wanted(layer, chosen))
        table = self.few[layer].table
        held = {e: slot for slot, e in enumerate(table.expert_in) if e is not None}
        assert table.slot_of == held


@pytest.fixture(scope="module")
def folder(checkpoint_of: Callable[..., Path]) -> Path:
    return checkpoint_of(SHAPE)


@dataclass(frozen=True)
class Step:
    """layer: that is called, or None if a failure ends the step behind its guess."""

    layer: int | None
    seed: int
    chosen: Array
    guess: Array


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """Some visit few experts, some all; some are cut short."""
    result = []
    for _ in range(draw(st.integers(1, 8))):
        layer, seed = draw(st.sampled_from([0, 0, 1, 1, None])), draw(st.integers(0, 999))
        tokens, among = draw(st.sampled_from([1, 1, 2, 3, TOKENS])), draw(st.integers(K, EXPERTS))
        rng = np.random.default_rng(seed)
        some = rng.permutation(EXPERTS)[:among]
        chosen = np.stack([rng.permutation(some)[:K] for _ in range(tokens)])
        result.append(Step(layer, seed, chosen, rng.permutation(EXPERTS)[:K]))
    return result


@settings(max_examples=100, derandomize=True, suppress_health_check=[*HealthCheck])
@given(steps(), st.integers(K, EXPERTS - 1), st.integers(0, 2**32))
def test_any_routing_in_any_order_of_reads_gives_the_resident_output(
    folder: Path, steps: list[Step], size: int, seed: int
) -> None:
    layers = Layers(folder, size, ScriptedReader(Random(seed)))
    for step in steps:
        if step.layer is None:
            layers.few[1].expect(step.guess.tolist())
            continue
        guess = step.guess[None] if len(step.chosen) <= 3 else None
        found = layers.step(step.layer, step.chosen, guess, step.seed)
        np.testing.assert_array_equal(found, layers.wanted(step.layer, step.chosen, step.seed))


def test_what_was_guessed_is_there_when_it_is_chosen(folder: Path) -> None:
    layers = Layers(folder, 5)  # 0 to 4 are loaded
    layers.step(0, np.array([[0, 1, 2, 8]]), np.array([[1, 2, 3, 7]]))
    counts = layers.counts
    assert (counts.hits, counts.misses, counts.prefetched) == (3, 1, 1)
    expert_bytes = counts.bytes_read // 2
    layers.step(1, np.array([[2, 3, 7, 6]]))
    assert (counts.hits, counts.misses) == (6, 2)
    assert (counts.guessed, counts.guessed_right, counts.prefetch_used) == (4, 3, 1)
    assert counts.bytes_read == 3 * expert_bytes
    assert counts.stall > 0


@pytest.mark.parametrize("when", ["miss", "prefetch"])
def test_a_failing_read_stops_the_step_and_nothing_else(when: str, folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        files = FailingReader({tensor.path for tensor in checkpoint.tensors.values()})
    layers, easy, hard = (
        Layers(folder, 5, files),
        np.array([[0, 1, 2, 3]]),
        np.array([[5, 6, 7, 8]]),
    )
    files.failing = True
    if when == "miss":
        with pytest.raises(CheckpointError, match="was cut short while in use"):
            layers.step(0, hard)
    else:
        layers.step(0, easy, hard)  # what fails is not needed yet
    files.failing = False
    for layer in (0, 1):
        layers.check(layer, hard)
        layers.check(layer, easy)


TURNS = [([[0, 3, 1, 2]], [[4, 1, 8, 6]]), ([[1, 4, 7, 5]], [[3, 0, 2, 5]])]
"""Experts of two steps, in five slots, and what each guesses of the next layer."""


def test_an_interrupt_anywhere_in_a_streamed_step(folder: Path) -> None:
    layers, turn = Layers(folder, 5), 0

    def step() -> None:
        chosen, guess = map(np.array, TURNS[turn % 2])
        layers.step(0, chosen, guess)
        layers.step(1, chosen)

    for turn in everywhere(OURS, step):
        for layer in (0, 1):
            layers.check(layer, np.array(TURNS[turn % 2][0]))
    assert turn > 300


@pytest.mark.parametrize("size", [4, 6, 8])
def test_the_model_gives_the_same_logits_with_fewer_slots(
    size: int, checkpoint_of: Callable[..., Path]
) -> None:
    """Through prefill in chunks, and decoding one and two sequences."""
    folder = checkpoint_of(Shape(3, 64, 32, 9, 4, 4, 2, 16, vocab=512, window=16))
    ids = np.random.default_rng(0).integers(0, 512, 90).tolist()
    rows = []
    for count in (None, size):
        with Checkpoint.open(folder) as checkpoint:
            model = open_model(checkpoint, slots=count, context=128, chunk=32, rows=2)
        a, b = model.new_state(), model.new_state()
        model.prefill(ids[:40], a)
        model.prefill(ids[50:60], b)
        steps = [model.decode([[ids[40]]], [a])]
        steps += [model.decode([[id], [id + 1]], [a, b]) for id in ids[60:70]]
        rows.append([*steps, model.evaluate(ids[70:], a)])
    for ours, theirs in zip(*rows, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert model.streaming is not None
    assert model.stats()["misses"] > 0
    assert model.stats()["guessed"] > 0
