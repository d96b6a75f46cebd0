"""Sequences decoded together: each as if it were alone, whatever joins, leaves or goes back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.backends.mlx.ops.choice import Kernels, metal_kernels
from gptoss_mlx.backends.mlx.ops.decode_attention import decode_attention
from gptoss_mlx.errors import CapacityError
from tests.support.backends import BACKENDS, ROWS, open_on
from tests.support.checkpoints import Shape
from tests.support.comparison import opened, relative_l2
from tests.support.metal_emulator import Emulator, available

SHAPE = Shape(3, 96, 64, 6, 3, 4, 2, 32, vocab=256, window=12)
LIMIT = 1e-5
"""Relative L2 of logits, on a CPU: a product of several rows may add in another order than one."""

OPTIONS: dict[str, dict[str, Any]] = {"resident": {}, "streamed": {"slots": 4}}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("decode"), st.sets(st.integers(0, ROWS), min_size=1, max_size=ROWS)),
        st.tuples(st.just("prefill"), st.integers(0, ROWS)),
        st.tuples(st.just("snapshot"), st.integers(0, ROWS)),
        st.tuples(st.just("restore"), st.integers(0, ROWS)),
        st.tuples(st.just("trim"), st.integers(0, ROWS)),
    ),
    min_size=4,
    max_size=14,
)


class Pair:
    """One sequence in two states, decoded with others and by itself."""

    def __init__(self, model: Any, number: int) -> None:
        self.model, self.rng = model, np.random.default_rng(number)
        self.together, self.alone = model.new_state(), model.new_state()
        self.snapshots: list[Any] = []

    def token(self) -> list[int]:
        return [int(self.rng.integers(0, SHAPE.vocab))]

    def prefill(self) -> None:
        ids = self.rng.integers(0, SHAPE.vocab, int(self.rng.integers(1, 30))).tolist()
        for state in (self.together, self.alone):
            self.model.prefill(ids, state)

    def snapshot(self) -> None:
        self.snapshots.append((self.together.snapshot(), self.alone.snapshot()))

    def restore(self) -> None:
        offset = self.together.offset
        kept = [pair for pair in self.snapshots if pair[0].offset <= offset]
        if kept:
            for snapshot in kept[-1]:
                snapshot.restore()
        self._forget()

    def trim(self) -> None:
        offset = max(0, self.together.offset - 3)
        if self.together.can_trim(offset):
            for state in (self.together, self.alone):
                state.trim(offset)
        self._forget()

    def _forget(self) -> None:
        self.snapshots = [p for p in self.snapshots if p[0].offset <= self.together.offset]


def worst(model: Any, steps: list[tuple[str, Any]]) -> float:
    """The largest relative L2 of any sequence's logits from those that it gets alone."""
    pairs, found = [Pair(model, number) for number in range(ROWS + 1)], [0.0]
    for step, what in steps:
        if step != "decode":
            getattr(pairs[what], step)()
            continue
        asked = [(pairs[i], pairs[i].token()) for i in what]
        states = [pair.together for pair, _ in asked]
        rows = [np.asarray(row) for row in model.decode([token for _, token in asked], states)]
        for (pair, token), row in zip(asked, rows, strict=True):
            (alone,) = model.decode([token], [pair.alone])
            found.append(relative_l2(row, np.asarray(alone)))
    return max(found)


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def model_of(backend: str, checkpoint_of: Callable[..., Path]) -> Callable[[str], Any]:
    return cache(lambda name: open_on(backend, checkpoint_of(SHAPE), **OPTIONS[name]))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(OPTIONS)), STEPS)
def test_each_sequence_is_as_if_alone(
    model_of: Callable[[str], Any], name: str, steps: list[tuple[str, Any]]
) -> None:
    assert worst(model_of(name), steps) < LIMIT


@settings(max_examples=8, deadline=None, derandomize=True)
@given(STEPS)
def test_quantized_keys_too(
    checkpoint_of: Callable[..., Path], steps: list[tuple[str, Any]]
) -> None:
    model = opened(checkpoint_of(SHAPE), kv_bits=8, rows=ROWS)
    assert worst(model, steps) < 1e-3  # a rounding may change a code of a key


def test_more_than_there_are_rows_is_refused_before_anything_is_computed(
    model_of: Callable[[str], Any],
) -> None:
    model = model_of("resident")
    states = [model.new_state() for _ in range(ROWS + 1)]
    with pytest.raises(CapacityError, match=r"^the model was opened for 4 sequences at a time"):
        model.decode([[1]] * len(states), states)
    assert [state.offset for state in states] == [0] * len(states)


needs_clang = pytest.mark.skipif(available() is not None, reason=available() or "")


@needs_clang
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("bfloat16", "resident"),
        pytest.param("float32", "resident", marks=pytest.mark.slow),
        pytest.param("float32", "streamed", marks=pytest.mark.slow),
        pytest.param("bfloat16", "streamed", marks=pytest.mark.slow),
    ],
)
def test_with_metals_kernels_to_the_last_bit(
    checkpoint_of: Callable[..., Path], dtype: str, options: str
) -> None:
    """Sequences of any lengths, some longer than one range of attention, that come and go."""
    kernels = metal_kernels(Emulator(check=False).metal_kernel)
    asked = {"kernels": kernels, "rows": 8, "dtype": dtype, **OPTIONS[options]}
    model = opened(checkpoint_of(SHAPE), **asked)
    plain = opened(checkpoint_of(SHAPE), dtype=dtype)  # faster than the emulator
    lengths = [1, 70, 5, 1100, 130, 13]
    states = {name: [model.new_state() for _ in lengths] for name in ("together", "alone")}
    for group in states.values():
        for state, length in zip(group, lengths, strict=True):
            plain.prefill([(7 * i + length) % SHAPE.vocab for i in range(length)], state)
    for step, members in enumerate([range(6), range(6), (4, 1, 0), (0, 1, 4), (5, 3, 1)]):
        tokens = [[(31 * step + i) % SHAPE.vocab] for i in members]
        rows = model.decode(tokens, [states["together"][i] for i in members])
        for i, token, row in zip(members, tokens, rows, strict=True):
            (alone,) = model.decode([token], [states["alone"][i]])
            assert mx.array_equal(row, alone), (step, i)


def test_a_step_calls_each_operation_once_for_all(checkpoint_of: Callable[..., Path]) -> None:
    """So that every weight is read once: what varies by sequence is attention alone."""
    model = opened(checkpoint_of(SHAPE), rows=ROWS)
    seen: list[tuple[str, int]] = []
    for block in model.blocks:
        bank = block.moe.experts
        for name in ("gate_up", "down"):
            setattr(bank, name, _counted(getattr(bank, name), name, seen))
    states = [model.new_state() for _ in range(ROWS)]
    mx.eval(model.decode([[1]] * ROWS, states))
    assert seen == [("gate_up", ROWS), ("down", ROWS)] * SHAPE.layers


def _counted(
    call: Callable[..., mx.array], name: str, seen: list[tuple[str, int]]
) -> Callable[..., mx.array]:
    def counted(x: mx.array, *others: Any) -> mx.array:
        seen.append((name, x.shape[0]))
        return call(x, *others)

    return counted


def test_a_sequence_that_leaves_holds_no_one_elses_pages(
    checkpoint_of: Callable[..., Path],
) -> None:
    paged = Kernels(decode_attention=partial(decode_attention))
    model = opened(checkpoint_of(SHAPE), kernels=paged, rows=3)
    states = [model.new_state() for _ in range(3)]
    alone = model.new_state()
    mx.eval(model.decode([[1]], [alone]))
    for group in (states, states[:2]):
        mx.eval(model.decode([[1]] * len(group), group))
    arrays = [np.array(a).shape[0] for a in states[2].arrays() if a.ndim == 5]
    assert set(arrays) == {1}
    assert states[2].nbytes == states[0].nbytes == alone.nbytes
