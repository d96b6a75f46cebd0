"""Everything that a sequence must not notice, at once: neighbours that come, are cancelled, dropped
and end at any step, prefixes from idle sessions, memory and disk, restarts, streamed experts, keys
of 8 bits. Each sequence says what it would say alone on a new model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gptoss_mlx.backends.protocol import sealed
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.prefix import PrefixStore, root_name
from gptoss_mlx.engine.sequence import Sequence as Running
from gptoss_mlx.errors import ClosedError
from gptoss_mlx.files.store import OWNER_DIGITS, FileStore
from gptoss_mlx.models.checkpoint import Checkpoint
from tests.engine.test_loop import Sink
from tests.support.backends import open_on
from tests.support.checkpoints import Shape
from tests.support.fake_backend import FakeModel
from tests.support.scripted_model import finish_of, ids_of, tokenizer

pytestmark = pytest.mark.slow  # test_together, test_loop and test_prefix.py have its parts

SHAPE = Shape(2, 64, 32, 4, 2, 4, 2, 32, window=8)
ROWS, CONTEXT, CHUNK = 3, 400, 16
MODELS = {
    "mlx": ("mlx", {}),
    "mlx, 8 bits": ("mlx", {"kv_bits": 8}),
    "mlx, streamed": ("mlx", {"slots": 3}),
    "torch": ("torch", {}),
    "torch, streamed": ("torch", {"slots": 3}),
    "fake": ("fake", {}),
}
RULES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 50},
    {"temperature": 1.0, "repetition_penalty": 1.2, "frequency_penalty": 0.4},
    {"temperature": 1.0, "regex": "[a-z]{1,3}( [a-z]{1,3})*"},
)


@dataclass(frozen=True)
class Arrival:
    """A prompt that comes after so many steps: it goes on from what a conversation held `keep`
    tokens ago, with `new` tokens. leave: cancelled or dropped after so many more steps."""

    after: int
    talk: int
    keep: int
    new: int
    tokens: int
    rules: int
    leave: int | None
    dropped: bool


ARRIVALS = st.builds(
    Arrival,
    after=st.integers(0, 6),
    talk=st.integers(0, 2),
    keep=st.integers(0, 40),
    new=st.integers(1, 50),
    tokens=st.integers(1, 12),
    rules=st.integers(0, len(RULES) - 1),
    leave=st.one_of(st.none(), st.integers(0, 12)),
    dropped=st.booleans(),
)


@dataclass
class Asked:
    """A request under way. leaves: the step after which it is taken back."""

    prompt: list[int]
    options: dict[str, Any]
    sequence: Running
    leaves: int | None
    dropped: bool
    sink: Sink = field(default_factory=Sink)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.torch] if backend == "torch" else [])
        for name, (backend, _) in MODELS.items()
    ],
)
def model(request: pytest.FixtureRequest, checkpoint_of: Callable[..., Path]) -> Iterator[Any]:
    backend, options = MODELS[request.param]
    folder = checkpoint_of(SHAPE)
    if backend == "fake":
        with Checkpoint.open(folder) as checkpoint:
            yield FakeModel(checkpoint.config, ROWS, CHUNK)
    else:
        yield open_on(backend, folder, rows=ROWS, chunk=CHUNK, **options)


def engine_of(model: Any, budget: int, folder: Path | None, disk: int) -> Engine:
    """A new engine on the model; one without a budget has no prefix store."""
    files = None
    if folder is not None:
        files = FileStore(folder, disk, root_name("x")[:OWNER_DIGITS], 1 << 20)
    store = PrefixStore(sealed(model), budget, "x", files)
    return Engine(sealed(model), tokenizer(), model.config, CONTEXT, {}, store=store)


def alone(model: Any, prompt: Sequence[int], options: dict[str, Any]) -> list[int]:
    with engine_of(model, 0, None, 0) as engine:
        return ids_of(list(engine.stream(list(prompt), **options)))


def check(model: Any, asked: Asked, cut: bool) -> list[int]:
    """What was said is what would be said alone, or its beginning if it was taken back or the
    engine was closed; returns what would be said."""
    said = ids_of(asked.sink.events)
    expected = alone(model, asked.prompt, asked.options)
    if cut:
        assert asked.dropped or isinstance(asked.sink.error, ClosedError)
    else:
        assert asked.sink.error is None
        reason = finish_of(asked.sink.events).reason
        assert said == expected or (reason == "cancelled" and asked.leaves is not None)
    assert said == expected[: len(said)]
    return expected


@settings(max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    waves=st.lists(st.lists(ARRIVALS, min_size=1, max_size=6), min_size=1, max_size=3),
    budget=st.sampled_from([0, 20_000, 60_000, 1 << 24]),
    disk=st.sampled_from([0, 60_000, 1 << 30]),
    head=st.integers(0, 60),
    closed=st.booleans(),
)
def test_each_sequence_says_what_it_says_alone(
    waves: list[list[Arrival]],
    budget: int,
    disk: int,
    head: int,
    closed: bool,
    model: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """After each wave the engine is closed and another opened on the same files; `closed`: the
    first one in the middle of its wave."""
    folder = tmp_path_factory.mktemp("cache") if disk else None
    rng = np.random.default_rng(head)
    fresh = lambda n: rng.integers(0, 199998, n).tolist()  # noqa: E731
    shared = fresh(head)
    talks = [[*shared, *fresh(5)] for _ in range(3)]
    for number, wave in enumerate(waves):
        engine = engine_of(model, budget, folder, disk)
        coming, all_asked = sorted(wave, key=lambda arrival: arrival.after), list[Asked]()
        for step in range(2000):
            while coming and coming[0].after <= step:
                arrival = coming.pop(0)
                talk = talks[arrival.talk]
                prompt = [*talk[: len(talk) - arrival.keep], *fresh(arrival.new)][-150:]
                all_asked.append(submit(engine, arrival, prompt, step))
            for asked in all_asked:
                if asked.leaves == step:
                    engine.drop([asked.sequence]) if asked.dropped else asked.sequence.cancel()
            if not coming and (engine.finished or (closed and number == 0 and step > 9)):
                break
            engine.step()
        assert engine.stats()["store_bytes"] <= budget
        cut = {id(asked) for asked in all_asked if not asked.sequence.finished}
        engine.close()
        assert engine.notes == ()
        arrivals = sorted(wave, key=lambda arrival: arrival.after)
        for arrival, asked in zip(arrivals, all_asked, strict=True):
            expected = check(model, asked, id(asked) in cut)
            talks[arrival.talk] = [*asked.prompt, *expected]


def submit(engine: Engine, arrival: Arrival, prompt: list[int], step: int) -> Asked:
    options = {"raw": True, "seed": len(prompt), "max_tokens": arrival.tokens}
    options |= RULES[arrival.rules]
    sink = Sink()
    sequence = engine.add(prompt, sink, **options)
    leaves = None if arrival.leave is None else step + arrival.leave
    return Asked(prompt, options, sequence, leaves, arrival.dropped, sink)
