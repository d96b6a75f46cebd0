"""The whole model with every Metal kernel run by the emulator, beside the same model without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.backends.mlx.model import Transformer, open_model
from gptoss_mlx.backends.mlx.ops.choice import (
    MODULES,
    Kernels,
    choose_kernels,
    implementations,
    metal_kernels,
)
from gptoss_mlx.backends.mlx.ops.verdicts import Verdicts
from gptoss_mlx.backends.protocol import sealed
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.engine.result import collect
from gptoss_mlx.harmony.tokenizer import load_tokenizer
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.models.tiny import materialise
from tests.support.checkpoints import Shape
from tests.support.comparison import fresh, opened, relative_l2, worst_row
from tests.support.metal_emulator import Emulator, available

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "")

SHAPE = Shape(3, 96, 64, 6, 3, 6, 2, 32, 512, window=16)
IDS = [(7 * i + 3) % 512 for i in range(60)]
EXACT = 2e-6  # relative L2 of logits in float32: a few dozen roundings


@pytest.fixture(scope="module")
def emulated() -> Kernels:
    return metal_kernels(Emulator(check=False).metal_kernel)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_every_kernel_agrees_with_its_reference_on_its_examples(dtype: mx.Dtype) -> None:
    kernels = choose_kernels(policy="metal", factory=Emulator(order="random").metal_kernel)
    for name, module in MODULES.items():
        for arguments in module.examples(dtype):
            getattr(kernels, name)(*arguments)
    assert implementations(kernels) == dict.fromkeys(MODULES, "metal")


@pytest.mark.parametrize("slots", [None, 4])
def test_what_a_model_launches_was_tried_when_it_was_opened(
    checkpoint_of: Callable[..., Path], slots: int | None
) -> None:
    factory = Emulator(check=False).metal_kernel
    kernels = choose_kernels(policy="metal", factory=factory, verdicts=Verdicts({}, None))
    model = opened(checkpoint_of(replace(SHAPE, layers=2)), kernels=kernels, chunk=40, slots=slots)
    assert kernels.trials is not None
    tried = dict(kernels.trials.known)
    state = model.new_state()
    model.prefill(IDS[:40], state)
    for chunk in (IDS[:2], IDS[:3], IDS[:8], IDS[:1]):
        model.evaluate(chunk, state)
    mx.eval(model.decode([[3]], [state])[0])
    assert kernels.trials.known == tried
    assert 0 not in tried.values()


def logits(model: Transformer) -> Any:
    """Of a prompt read in two chunks, its last token and two more."""
    state = model.new_state()
    model.prefill(IDS[:40], state)
    rows = [model.evaluate(IDS[40:57], state)]
    rows += [np.array(model.decode([[token]], [state])[0])[None] for token in IDS[57:]]
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("options", "most"),
    # A rounding may change a code of a key; quantizing all of them is 1.4e-3 away.
    [({}, EXACT), ({"slots": 4}, EXACT), ({"kv_bits": 8}, 3e-4)],
    ids=["resident", "streamed", "quantized keys"],
)
def test_prefill_and_decode(
    checkpoint_of: Callable[..., Path], emulated: Kernels, options: dict[str, Any], most: float
) -> None:
    folder = checkpoint_of(SHAPE)
    ours = logits(opened(folder, kernels=emulated, **options))
    assert relative_l2(ours, logits(opened(folder, **options))) < most


@pytest.mark.slow
@pytest.mark.parametrize("slots", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streamed_experts_give_the_resident_bits(
    checkpoint_of: Callable[..., Path], emulated: Kernels, slots: int, dtype: str
) -> None:
    folder = checkpoint_of(SHAPE)
    resident, streamed = (
        opened(folder, kernels=emulated, slots=n, dtype=dtype) for n in (None, slots)
    )
    states = [model.new_state() for model in (resident, streamed)]
    chunks = [IDS[:33], IDS[33:35], IDS[35:38], IDS[38:45], *([token] for token in IDS[45:50])]
    for chunk in chunks:
        rows = [
            model.evaluate(chunk, state)
            for model, state in zip((resident, streamed), states, strict=True)
        ]
        np.testing.assert_array_equal(rows[1], rows[0])


WALK = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.integers(2, 40)),
        st.tuples(st.just("decode"), st.integers(1, 8)),
        st.tuples(st.just("snapshot"), st.just(0)),
        st.tuples(st.just("restore"), st.integers(0, 5)),
        st.tuples(st.just("trim"), st.integers(0, SHAPE.window)),
    ),
    min_size=3,
    max_size=8,
)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(2, 62), WALK)
def test_attention_after_any_walk_is_that_of_one_pass(
    checkpoint_of: Callable[..., Path],
    emulated: Kernels,
    begin: int,
    walk: list[tuple[str, int]],
) -> None:
    """Other kernels do not see the cache: their references are faster."""
    folder = checkpoint_of(SHAPE)
    part = Kernels(decode_qkv=emulated.decode_qkv, decode_attention=emulated.decode_attention)
    plain, model = opened(folder), opened(folder, kernels=part)
    state, ids, draws = model.new_state(), list[int](), iter(range(3, 1 << 20, 7))
    snapshots: list[Any] = []
    for step, n in [("extend", begin), ("decode", 3), *walk, ("decode", 2)]:
        if step == "snapshot":
            snapshots.append(state.snapshot())
        elif step == "restore" and snapshots:
            snapshots[n % len(snapshots)].restore()
        elif step == "trim" and state.can_trim(n):
            state.trim(n)
        ids = ids[: state.offset]
        snapshots = [snapshot for snapshot in snapshots if snapshot.offset <= len(ids)]
        rows = []
        for chunk in {"extend": [n], "decode": [1] * n}.get(step, []):
            new = [next(draws) % 512 for _ in range(chunk)]
            rows.append(model.evaluate(new, state))
            ids += new
        if rows:
            found = np.concatenate(rows)
            assert worst_row(found, fresh(plain, ids)[-len(found) :]) < EXACT


def answer(question: str, kernels: Kernels | None) -> tuple[str, str, list[int]]:
    """The beginning of the tiny model's answer: text, reasoning and tokens."""
    folder = materialise()
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    model = open_model(checkpoint, dtype="float32", kernels=kernels)
    engine = Engine(sealed(model), load_tokenizer(folder, config), config, 4096, {})
    events = list(engine.stream(question, reasoning="low", temperature=0.0, max_tokens=12))
    result = collect(iter(events))
    ids = [event.id for event in events if isinstance(event, TokenEvent) and event.id is not None]
    return result.text, result.reasoning, ids


@pytest.mark.slow
def test_the_tiny_model_answers_the_same(emulated: Kernels) -> None:
    ours = answer("What is 27 + 58?", emulated)
    assert ours == answer("What is 27 + 58?", None)
    assert len(ours[2]) == 12
