"""The forward pass on both backends: against float64 by hand, in any chunks, after any snapshot.

Converted folders are in test_model_quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.model import Transformer
from gptoss_mlx.backends.state import layout_bytes
from tests.support.backends import BACKENDS, open_on, token_on
from tests.support.checkpoints import Shape
from tests.support.comparison import argmax_agreement, fresh, opened, relative_l2, worst_row
from tests.support.numpy_gpt_oss import NumpyGptOss
from tests.support.shapes import CASES, tokens

Logits = NDArray[np.float32]

LIMIT = 1e-5
"""Relative L2. Measured: at most 2e-6, of which float32's rotation angles make most."""

NARROW = Shape(3, 64, 64, 6, 2, 4, 2, 16, vocab=256, window=12)
WIDE = Shape(2, 64, 32, 4, 2, 2, 1, 16, vocab=256)


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def model_of(backend: str, checkpoint_of: Callable[..., Path]) -> Callable[[Shape], Any]:
    return cache(lambda shape: open_on(backend, checkpoint_of(shape)))


@pytest.fixture(scope="session")
def one_pass(
    model_of: Callable[[Shape], Any],
) -> Callable[[Shape, int], tuple[list[int], Logits]]:
    """(shape, tokens) -> ids and their logits in one pass."""

    @cache
    def run(shape: Shape, length: int) -> tuple[list[int], Logits]:
        ids = tokens(shape.vocab, length)
        return ids, fresh(model_of(shape), ids)

    return run


@pytest.mark.parametrize("name", ["one_token", "exactly_the_window", "small", "odd_window"])
def test_forward_pass_by_hand_in_float64(
    name: str, backend: str, checkpoint_of: Callable[..., Path]
) -> None:
    case = CASES[name]
    folder = checkpoint_of(case.shape, seed=case.seed)
    ours, exact = (
        fresh(open_on(backend, folder), case.ids()),
        NumpyGptOss(folder).logits(case.ids()),
    )
    assert ours.shape == (case.length, case.shape.vocab)
    assert relative_l2(ours, exact) < LIMIT
    assert argmax_agreement(ours, exact) == 1


Weigh = Callable[[NumpyGptOss], None]


def _no_sink(head: int) -> Weigh:
    def change(oracle: NumpyGptOss) -> None:
        oracle.weights["model.layers.1.self_attn.sinks"][head] = -np.inf

    return change


def _no_expert(layer: int, e: int) -> Weigh:
    def change(oracle: NumpyGptOss) -> None:
        experts = f"model.layers.{layer}.mlp.experts"
        oracle.weights[f"{experts}.down_proj"][e] = 0
        oracle.weights[f"{experts}.down_proj_bias"][e] = 0

    return change


def _config(**fields: Any) -> Weigh:
    return lambda oracle: oracle.config.update(fields)


def _rounded_yarn(oracle: NumpyGptOss) -> None:
    oracle.config["rope_scaling"]["truncate"] = True


CHANGES: dict[str, Weigh] = {
    **{f"no sink in head {h}": _no_sink(h) for h in range(NARROW.heads)},
    **{f"no expert {e} in layer {n}": _no_expert(n, e) for n in (0, 2) for e in range(6)},
    "window longer by one": _config(sliding_window=13),
    "window shorter by one": _config(sliding_window=11),
    "full where it slides": _config(layer_types=["full_attention"] * 3),
    "one expert fewer": _config(num_experts_per_tok=1),
    "no yarn": _config(
        rope_scaling={
            "factor": 1.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        }
    ),
    "another epsilon": _config(rms_norm_eps=1e-2),
    "rounded yarn": _rounded_yarn,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_part_of_the_model_shows_in_the_logits(
    change: str, checkpoint_of: Callable[..., Path], one_pass: Any
) -> None:
    # What makes the comparisons above worth something: each change alone is seen.
    ids, ours = one_pass(NARROW, 80)
    oracle = NumpyGptOss(checkpoint_of(NARROW))
    CHANGES[change](oracle)
    assert relative_l2(ours, oracle.logits(ids)) > 10 * LIMIT


def test_unchanged_model_agrees_where_each_change_shows(
    checkpoint_of: Callable[..., Path], one_pass: Any
) -> None:
    ids, ours = one_pass(NARROW, 80)
    assert relative_l2(ours, NumpyGptOss(checkpoint_of(NARROW)).logits(ids)) < LIMIT


def test_changed_sinks_are_used(backend: str, checkpoint_of: Callable[..., Path]) -> None:
    folder, ids = checkpoint_of(NARROW), tokens(NARROW.vocab, 30)
    model, oracle = open_on(backend, folder), NumpyGptOss(folder)
    before = fresh(model, ids)
    for layer, block in enumerate(model.blocks):
        if backend == "mlx":
            block.attend.sinks = block.attend.sinks + 1.5
        elif backend == "cpu":
            block.attention.sinks += 1.5
        else:
            layer_of = block.attention.layer
            block.attention.layer = replace(layer_of, sinks=layer_of.sinks + 1.5)
        oracle.weights[f"model.layers.{layer}.self_attn.sinks"] += 1.5
    after = fresh(model, ids)
    assert relative_l2(after, before) > 1e-2
    assert relative_l2(after, oracle.logits(ids)) < LIMIT


def test_a_sliding_layer_forgets_the_token_that_leaves_the_window(
    model_of: Callable[[Shape], Any],
) -> None:
    # One layer, which slides: token 5 is seen up to position 5 + 127 and not at 5 + 128.
    shape = Shape(1, 64, 32, 4, 2, 2, 1, 16, vocab=256)
    model, ids = model_of(shape), tokens(256, 140)
    other = [*ids[:5], (ids[5] + 1) % 256, *ids[6:]]
    # More than rounding: a token that chooses other experts changes the shape of their products.
    differs = np.abs(fresh(model, ids) - fresh(model, other)).max(axis=-1) > 1e-4
    assert np.flatnonzero(differs).tolist() == list(range(5, 5 + 128))


SPLITS = st.lists(st.one_of(st.just(1), st.integers(1, 20), st.sampled_from([127, 128, 129])))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(SPLITS)
def test_any_split_into_chunks_gives_one_pass(
    model_of: Callable[[Shape], Any], one_pass: Any, splits: list[int]
) -> None:
    for shape, length in ((NARROW, 70), (WIDE, 300)):
        model = model_of(shape)
        ids, reference = one_pass(shape, length)
        state, parts = model.new_state(), []
        for count in [*splits, length]:
            chunk = ids[state.offset : state.offset + count]
            if chunk:
                parts.append(model.evaluate(chunk, state))
        assert state.offset == length
        assert worst_row(np.concatenate(parts), reference) < LIMIT


@pytest.mark.parametrize("shape", [NARROW, WIDE], ids=["narrow", "wide"])
def test_token_by_token_past_two_windows(
    shape: Shape, backend: str, model_of: Callable[[Shape], Any], one_pass: Any
) -> None:
    model = model_of(shape)
    ids, reference = one_pass(shape, 300 if shape is WIDE else 70)
    state = model.new_state()
    # From arrays, as a decode loop hands on a token that is still being computed.
    rows = [np.asarray(model.decode([token_on(backend, token)], [state])[0]) for token in ids]
    assert worst_row(np.stack(rows), reference) < LIMIT


def test_prefill_leaves_the_state_that_evaluate_leaves(
    model_of: Callable[[Shape], Any], one_pass: Any
) -> None:
    model = model_of(WIDE)
    ids, reference = one_pass(WIDE, 300)
    state = model.new_state()
    for start in range(0, 250, 90):
        model.prefill(ids[start : min(start + 90, 250)], state)
    assert state.offset == 250
    assert worst_row(model.evaluate(ids[250:], state), reference[250:]) < LIMIT


class _Walk:
    """A state led about, with all it should now hold and the logits it gave on the way."""

    def __init__(self, model: Any) -> None:
        self.model, self.state = model, model.new_state()
        self.ids: list[int] = []
        self.rows: list[Logits] = []
        self.snapshots = [self.state.snapshot()]
        self.fresh_token = 0
        self.short: int | None = None  # the length at which the rings are ahead by a token
        self.shorts: dict[int, int | None] = {}  # the same of each snapshot

    def extend(self, count: int) -> None:
        count = max(count, 1)
        new = [(7 * (self.fresh_token + i) + 3) % 251 for i in range(count)]
        self.fresh_token += count
        self.rows += list(self.model.evaluate(new, self.state))
        self.ids += new

    def decode(self, count: int) -> None:
        for _ in range(1 + count % 5):
            self.extend(1)

    def snapshot(self, _: int) -> None:
        self._take(0)

    def snapshot_of_before(self, _: int) -> None:
        if self.ids and self.short != len(self.ids):
            self._take(1)

    def _take(self, back: int) -> None:
        held = len(self.ids)
        self.snapshots.append(self.state.snapshot(back))
        ahead = back and held > self.state.window
        self.shorts[id(self.snapshots[-1])] = held - back if ahead else self.short

    def restore(self, which: int) -> None:
        snapshot = self.snapshots[-1 - which % len(self.snapshots)]
        snapshot.restore()
        self.short = self.shorts.get(id(snapshot))
        self._cut(snapshot.offset)

    def copy(self, which: int) -> None:
        """Go on with a copy of all up to a snapshot, in segments; every other through bytes."""
        end = self.snapshots[-1 - which % len(self.snapshots)].offset
        ends = sorted({s.offset: s for s in self.snapshots if 0 < s.offset <= end}.items())
        segments: list[Any] = []
        shorts: list[int | None] = []
        for at, snapshot in ends:
            segments.append(self.state.segment(segments[-1].end if segments else 0, snapshot))
            shorts.append(self.shorts.get(id(snapshot)))
            layout = self.model.layout(at - segments[-1].start)
            assert segments[-1].nbytes == layout_bytes(layout)
            if at % 2:
                host = [data.copy() for data in self.model.to_host(segments[-1])]
                assert sum(data.nbytes for data in host) == layout_bytes(layout)
                segments[-1] = self.model.from_host(segments[-1].start, at, host)
                shorts[-1] = at
        if segments:
            self.state.close()
            self.state = self.model.restore(segments)
            self.snapshots = [self.state.recall(segment) for segment in segments]
            self.shorts = dict(zip(map(id, self.snapshots), shorts, strict=True))
            self.short = shorts[-1]
            self._cut(end)

    def trim(self, to: int) -> None:
        held = len(self.ids)
        offset = held - to % (held + 1)
        fresh = self.short != held and (held <= self.state.window or offset == held - 1)
        if offset == held or fresh:
            if offset < held and held > self.state.window:
                self.short = offset
            self.state.trim(offset)
            self._cut(offset)
        else:
            with pytest.raises(ValueError, match="cannot go back"):
                self.state.trim(offset)

    def _cut(self, offset: int) -> None:
        del self.ids[offset:], self.rows[offset:]
        self.snapshots = [s for s in self.snapshots if s.offset <= offset] or [
            self.state.snapshot()
        ]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["extend", "decode", "snapshot", "snapshot_of_before", "restore", "trim", "copy"]
        ),
        st.integers(0, 20),
    ),
    min_size=6,
    max_size=16,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(STEPS)
def test_any_snapshots_restores_and_trims_give_one_pass(
    model_of: Callable[[Shape], Any], steps: list[tuple[str, int]]
) -> None:
    walk = _Walk(model_of(NARROW))
    for step, number in steps:
        getattr(walk, step)(number)
        assert walk.state.offset == len(walk.ids)
    walk.extend(2)
    walk.decode(0)
    assert worst_row(np.stack(walk.rows), fresh(walk.model, walk.ids)) < LIMIT


@pytest.mark.parametrize("at", [1, 60, 128, 200])
def test_a_snapshot_replays_bit_for_bit_whatever_was_written_since(
    at: int, model_of: Callable[[Shape], Any]
) -> None:
    model, ids = model_of(WIDE), tokens(WIDE.vocab, 300)
    state = model.new_state()
    model.prefill(ids[:at], state)
    snapshot = state.snapshot()

    def replay() -> list[Logits]:
        rows = [np.asarray(model.decode([[token]], [state])[0]) for token in ids[at : at + 20]]
        return [*rows, *model.evaluate(ids[at + 20 : at + 60], state)]

    first = replay()
    for other in ([1], tokens(WIDE.vocab, 150, seed=1), tokens(WIDE.vocab, 3, seed=2)):
        snapshot.restore()
        model.prefill(other, state)
        if len(other) > 100:
            np.asarray(model.decode([[5]], [state])[0])
        snapshot.restore()
        np.testing.assert_array_equal(np.stack(replay()), np.stack(first))


def test_sequences_do_not_touch_each_other(model_of: Callable[[Shape], Any], one_pass: Any) -> None:
    model = model_of(NARROW)
    ids, reference = one_pass(NARROW, 70)
    one, other = model.new_state(), model.new_state()
    rows = []
    for start in range(0, 70, 7):
        model.prefill(tokens(NARROW.vocab, 5, seed=start), other)
        rows.append(model.evaluate(ids[start : start + 7], one))
    assert worst_row(np.concatenate(rows), reference) < LIMIT


def test_resident_embedding_gives_the_same_logits_bit_for_bit(
    checkpoint_of: Callable[..., Path],
) -> None:
    ids = tokens(NARROW.vocab, 70)
    mapped = fresh(opened(checkpoint_of(NARROW)), ids)
    resident = fresh(opened(checkpoint_of(NARROW), embedding="resident"), ids)
    np.testing.assert_array_equal(resident, mapped)


def test_bfloat16_is_close(checkpoint_of: Callable[..., Path]) -> None:
    # Each of a few dozen roundings to 8 bits of mantissa adds 2e-3, MLX's quantized products on a
    # CPU up to 2e-2 more, and a router's near tie can go to another expert: loose on purpose.
    ids = tokens(NARROW.vocab, 70)
    reference = fresh(opened(checkpoint_of(NARROW)), ids)
    model = opened(checkpoint_of(NARROW), dtype="bfloat16")
    ours = fresh(model, ids)
    assert model.blocks[0].attend.o.matrix.weight.dtype == mx.bfloat16
    assert model.hidden([1], model.new_state()).dtype == mx.bfloat16
    assert 1e-4 < relative_l2(ours, reference) < 0.15
    assert argmax_agreement(ours, reference) > 0.8


@pytest.mark.slow
def test_a_chunk_is_held_by_one_layer_at_a_time(
    checkpoint_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More sliding layers add their rings to a prefill's peak, and not the chunk's keys and values.

    What the model queues is waited for: how far a device falls behind is chance. What MLX frees
    late within an operation still is, so that a few peaks are compared.
    """
    monkeypatch.setattr(mx, "async_eval", mx.eval)
    few = Shape(2, 64, 32, 4, 1, 8, 8, 64, 320)
    kv = 256 * 2 * 8 * 64 * 4  # bytes of a chunk in one layer
    two, twenty = (
        [prefill_peak(model) for _ in range(3)]
        for model in (opened(checkpoint_of(replace(few, layers=layers))) for layers in (2, 20))
    )
    assert min(twenty) - max(two) < 3 * kv, "of 9 more sliding layers"


def prefill_peak(model: Transformer) -> int:
    """Bytes MLX holds at most while a second chunk of 256 is read, besides the state after it."""
    state, ids = model.new_state(), tokens(320, 512)
    model.prefill(ids[:256], state)
    before = mx.get_active_memory() - state.nbytes
    mx.reset_peak_memory()
    model.prefill(ids[256:], state)
    return int(mx.get_peak_memory()) - before - state.nbytes
