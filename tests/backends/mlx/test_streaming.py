"""Streamed experts: bit for bit a resident bank's output, whatever is read when, or fails to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.experts import ExpertBank
from gptoss_mlx.backends.mlx.streaming import StreamedExperts, Streaming
from gptoss_mlx.backends.mlx.weights import Loader
from gptoss_mlx.backends.slots import DEBUG
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files import reader as reader_module
from gptoss_mlx.files.pool import Tasks
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.models.checkpoint import Checkpoint
from tests.backends.mlx.ops.banks import choices, normal
from tests.support.checkpoints import Shape
from tests.support.comparison import opened
from tests.support.readers import FailingReader, ScriptedLoad, ScriptedReader

SHAPE = Shape(2, 64, 32, 9, 4, 4, 2, 16, vocab=64)
EXPERTS, K = SHAPE.experts, SHAPE.active
Routing = NDArray[np.uint32]


class Late(Streaming):
    """Computes what is launched at the last moment allowed, or at once, or in between."""

    pace = "late"

    def compute(self, output: mx.array) -> None:
        if self.pace == "at once":
            mx.eval(output)
        elif self.pace != "late":
            super().compute(output)


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here proves, beside its own promise, that no slot is written in flight."""
    monkeypatch.setenv(DEBUG, "1")


@pytest.fixture(scope="module")
def checkpoint(checkpoint_of: Callable[..., Path]) -> Iterator[Checkpoint]:
    with Checkpoint.open(checkpoint_of(SHAPE)) as checkpoint:
        yield checkpoint


@pytest.fixture(scope="module")
def bank_of(checkpoint: Checkpoint) -> Callable[..., ExpertBank]:
    def make(layer: int, slots: int | None = None) -> ExpertBank:
        with Loader(checkpoint, mx.float32) as loader:
            bank = ExpertBank(checkpoint.config, loader, layer, slots)
            loader.finish()
        return bank

    return make


@pytest.fixture(scope="module")
def resident(bank_of: Callable[..., ExpertBank]) -> Callable[[int], ExpertBank]:
    return cache(bank_of)


def _streamed(
    checkpoint: Checkpoint, bank_of: Callable[..., ExpertBank], slots: int, **attributes: Any
) -> list[StreamedExperts]:
    paths = {tensor.path for tensor in checkpoint.tensors.values()}
    shared = Late(checkpoint.tensors, FileReader(paths), slots)
    vars(shared).update(attributes)
    layers = [StreamedExperts(bank_of(layer, slots), shared) for layer in range(2)]
    layers[0].following = layers[1]
    return layers


@dataclass(frozen=True)
class Step:
    """layer: that is called, or None if a failure ends the step behind its guess."""

    layer: int | None
    seed: int
    routing: Routing
    guess: list[int] | None


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """Some visit few experts, some all; some are cut short."""
    result = []
    for _ in range(draw(st.integers(1, 8))):
        layer = draw(st.sampled_from([0, 0, 1, 1, None]))
        tokens, seed = draw(st.sampled_from([1, 1, 2, 3, 20])), draw(st.integers(0, 999))
        among = draw(st.integers(K, EXPERTS))
        rng = np.random.default_rng(seed)
        routing = rng.permutation(EXPERTS)[:among][choices(rng, tokens, K, among)]
        guess = draw(st.none() | st.permutations(range(EXPERTS)).map(lambda p: p[:K]))
        result.append(Step(layer, seed, routing.astype(np.uint32), guess))
    return result


@pytest.mark.slow
@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps(),
    st.integers(K, EXPERTS - 1),
    st.sampled_from(["late", "at once", "in flight"]),
    st.integers(0, 2**32),
)
def test_any_routing_in_any_order_of_reads_gives_the_resident_output(
    checkpoint: Checkpoint,
    bank_of: Callable[..., ExpertBank],
    resident: Callable[[int], ExpertBank],
    steps: list[Step],
    slots: int,
    pace: str,
    seed: int,
) -> None:
    layers = _streamed(checkpoint, bank_of, slots, reader=ScriptedReader(Random(seed)), pace=pace)
    found, wanted = [], []
    for step in steps:
        if step.layer is None:
            layers[1].expect(step.guess or [])
            continue
        rng = np.random.default_rng(step.seed)
        x, _ = normal(rng, len(step.routing), SHAPE.hidden)
        weights, _ = normal(rng, len(step.routing), K)
        chosen = mx.array(step.routing)
        guess = mx.array([step.guess]) if step.guess else None
        found.append(layers[step.layer](x, chosen, weights, guess))
        wanted.append(resident(step.layer)(x, chosen, weights))
    for ours, theirs in zip(found, wanted, strict=True):  # evaluated only here, if "late"
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


def test_table_and_bank_agree_after_many_steps(
    checkpoint: Checkpoint, bank_of: Callable[..., ExpertBank], resident: Callable[..., ExpertBank]
) -> None:
    layers = _streamed(checkpoint, bank_of, 5, reader=ScriptedReader(Random(1)))
    rng = np.random.default_rng(1)
    for _ in range(40):
        x, _ = normal(rng, 1, SHAPE.hidden)
        weights, _ = normal(rng, 1, K)
        mx.eval(layers[0](x, mx.array(choices(rng, 1, K, EXPERTS)), weights))
    layer, whole = layers[0], resident(0).matrices
    for name, array in layer.bank.matrices.items():
        for slot, expert in enumerate(layer.table.expert_in):
            assert expert is not None
            np.testing.assert_array_equal(np.array(array[slot]), np.array(whole[name][expert]))


def test_counts_are_what_happened(
    checkpoint: Checkpoint, bank_of: Callable[..., ExpertBank]
) -> None:
    first, second = _streamed(checkpoint, bank_of, 5)
    counts, one = first.streaming.counts, mx.ones((1, K))
    x = mx.ones((1, SHAPE.hidden))
    expert_bytes = sum(first.streaming.tensors[name][0].nbytes for name in first.bank.matrices)
    first(x, mx.array([[0, 1, 2, 8]]), one, mx.array([[1, 2, 3, 7]]))  # 0 to 4 were loaded
    assert (counts.hits, counts.misses) == (3, 1)
    assert counts.prefetched == 1  # 7
    assert counts.bytes_read == 2 * expert_bytes
    second(x, mx.array([[2, 3, 7, 6]]), one)
    assert (counts.hits, counts.misses) == (6, 2)
    assert (counts.guessed, counts.guessed_right, counts.prefetch_used) == (4, 3, 1)
    assert counts.bytes_read == 3 * expert_bytes
    assert counts.stall > 0


def test_a_chunk_visits_each_expert_once(
    checkpoint: Checkpoint, bank_of: Callable[..., ExpertBank]
) -> None:
    layer = _streamed(checkpoint, bank_of, 5)[0]
    rng = np.random.default_rng(0)
    x, _ = normal(rng, 60, SHAPE.hidden)
    weights, _ = normal(rng, 60, K)
    layer(x, mx.array(choices(rng, 60, K, EXPERTS)), weights)
    counts = layer.streaming.counts
    assert (counts.hits, counts.misses) == (5, EXPERTS - 5)
    layer(x, mx.array(choices(rng, 60, K, EXPERTS)), weights)  # the other way round
    assert (counts.hits, counts.misses) == (10, 2 * (EXPERTS - 5))


@pytest.mark.parametrize(
    ("broken", "what"),
    [("land", "while what reads it is in flight"), ("launch", "before what reads it is launched")],
)
def test_a_slot_written_in_flight_is_noticed(
    broken: str,
    what: str,
    checkpoint: Checkpoint,
    bank_of: Callable[..., ExpertBank],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Were nobody to wait for what is launched, or nothing launched."""
    layer = _streamed(checkpoint, bank_of, 4, pace="in flight")[0]
    x, weights = mx.ones((1, SHAPE.hidden)), mx.ones((1, K))
    monkeypatch.setattr(Streaming, broken, lambda *_, **__: None)
    layer(x, mx.array([[0, 1, 2, 3]]), weights)
    with pytest.raises(AssertionError, match=rf"^slot 0 of .*layers.0.* is written {what}$"):
        layer(x, mx.array([[4, 5, 6, 7]]), weights)


@pytest.mark.parametrize("when", ["miss", "prefetch"])
def test_a_failing_read_stops_the_call_and_nothing_else(
    when: str,
    checkpoint: Checkpoint,
    bank_of: Callable[..., ExpertBank],
    resident: Callable[[int], ExpertBank],
) -> None:
    first, second = _streamed(checkpoint, bank_of, 5)
    paths = {tensor.path for tensor in checkpoint.tensors.values()}
    reader = first.streaming.reader = FailingReader(paths)
    x, weights = mx.ones((1, SHAPE.hidden)), mx.ones((1, K))
    easy, hard = mx.array([[0, 1, 2, 3]]), mx.array([[5, 6, 7, 8]])
    np.array(first(x, easy, weights))
    reader.failing = True
    if when == "miss":
        with pytest.raises(CheckpointError, match="was cut short while in use"):
            first(x, hard, weights)
    else:
        np.array(first(x, easy, weights, hard))  # what fails is not needed yet
    reader.failing = False
    for layer, streamed in enumerate((first, second)):
        for routing in (hard, easy):
            np.testing.assert_array_equal(
                np.array(streamed(x, routing, weights)),
                np.array(resident(layer)(x, routing, weights)),
            )


def test_an_interrupted_call_leaves_no_half_read_expert(
    checkpoint: Checkpoint, bank_of: Callable[..., ExpertBank], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = _streamed(checkpoint, bank_of, 5, reader=ScriptedReader(Random(0)))[0]

    def interrupted(self: ScriptedLoad) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedLoad, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        layer(mx.ones((1, SHAPE.hidden)), mx.array([[5, 6, 7, 8]]), mx.ones((1, K)))
    assert layer.table.slot_of == {}


@pytest.mark.parametrize("where", ["abandon", "wait", "read"])
def test_an_interrupt_while_reads_run_leaves_nobody_writing(
    where: str,
    checkpoint: Checkpoint,
    bank_of: Callable[..., ExpertBank],
    resident: Callable[[int], ExpertBank],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow thread of an interrupted call may not write into a slot that was given away."""
    layer = _streamed(checkpoint, bank_of, 5)[0]
    x, weights = mx.ones((1, SHAPE.hidden)), mx.ones((1, K))
    interrupted, pread = Event(), reader_module._pread

    def slow(*piece: Any) -> None:
        interrupted.wait(20)
        pread(*piece)

    def interrupt(*_: Any) -> Any:
        interrupted.set()
        raise KeyboardInterrupt

    def read_and_interrupt(reader: FileReader, targets: Any) -> Any:
        read(reader, targets)
        interrupt()

    monkeypatch.setattr(reader_module, "_pread", slow)
    read, easy, hard = FileReader.read, mx.array([[0, 1, 2, 3]]), mx.array([[5, 6, 7, 8]])
    if where == "abandon":
        layer.expect([7, 8])
    with monkeypatch.context() as patch:
        if where == "read":
            patch.setattr(FileReader, "read", read_and_interrupt)
        else:
            patch.setattr(Tasks, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            layer(x, easy if where == "abandon" else hard, weights)
    for routing in (easy, hard):
        np.testing.assert_array_equal(
            np.array(layer(x, routing, weights)), np.array(resident(0)(x, routing, weights))
        )


def test_foretold_experts_are_read_once_though_a_chunk_needs_more_than_fit(
    checkpoint: Checkpoint, bank_of: Callable[..., ExpertBank]
) -> None:
    reader = ScriptedReader(Random(0))
    layer = _streamed(checkpoint, bank_of, 4, reader=reader)[0]
    layer.expect([5, 6, 7, 8])
    routing = np.stack([np.roll(np.arange(EXPERTS), i)[:K] for i in range(EXPERTS)])
    x, weights = mx.ones((EXPERTS, SHAPE.hidden)), mx.ones((EXPERTS, K))
    mx.eval(layer(x, mx.array(routing.astype(np.uint32)), weights))
    assert reader.reads == EXPERTS
    assert (layer.streaming.counts.hits, layer.streaming.counts.misses) == (4, 5)


@pytest.mark.parametrize("slots", [4, 6, 8])
def test_the_model_gives_the_same_logits_with_fewer_slots(
    slots: int, checkpoint_of: Callable[..., Path]
) -> None:
    """Through prefill in chunks, decoding, and two sequences in turn."""
    folder = checkpoint_of(Shape(3, 64, 32, 9, 4, 4, 2, 16, vocab=512, window=16))
    whole, few = opened(folder), opened(folder, slots=slots)
    ids = np.random.default_rng(0).integers(0, 512, 90).tolist()
    rows: dict[int, list[NDArray[np.float32]]] = {}
    for place, model in enumerate((whole, few)):
        a, b = model.new_state(), model.new_state()
        model.prefill(ids[:40], a)
        lazy = [model.decode([ids[40:41]], [a])[0]]
        model.prefill(ids[50:60], b)
        lazy += [model.decode([[id]], [state])[0] for id in ids[60:70] for state in (a, b)]
        rows[place] = [np.array(row) for row in lazy]
        rows[place] += list(model.evaluate(ids[70:], a))
    for ours, theirs in zip(rows[1], rows[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert few.streaming is not None
    assert few.streaming.counts.misses > 0
    assert (few.streaming.counts.guessed > 0) == (slots >= K)
    assert whole.streaming is None


def test_slots_below_a_tokens_experts_or_above_all_are_refused(
    checkpoint_of: Callable[..., Path],
) -> None:
    for slots in (K - 1, EXPERTS + 1):
        with pytest.raises(ValueError, match=f"{slots} slots"):
            opened(checkpoint_of(SHAPE), slots=slots)


def test_the_last_layers_experts_are_not_read_for_a_prefill(
    checkpoint_of: Callable[..., Path],
) -> None:
    model = opened(checkpoint_of(SHAPE), slots=4)
    last = model.blocks[-1].moe.experts
    assert isinstance(last, StreamedExperts)
    before = dict(last.table.slot_of)
    model.prefill(list(range(50)), model.new_state())
    assert last.table.slot_of == before
