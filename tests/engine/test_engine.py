"""The engine on a small random model with the whole vocabulary, on both backends, against the
plainest of loops.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

import gptoss_mlx
from gptoss_mlx.backends.mlx.sampler import Operations
from gptoss_mlx.backends.sampler import RuledSampler
from gptoss_mlx.engine.constraint import Constraint
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event, TokenEvent
from gptoss_mlx.errors import ContextError, MessageError
from gptoss_mlx.harmony import Mask, Parser
from gptoss_mlx.harmony.compiler import Compiler
from gptoss_mlx.harmony.encoding import CALL, CHANNEL, END, RETURN, VOCAB_SIZE
from tests.support.backends import ENGINES, engine_on
from tests.support.checkpoints import Shape
from tests.support.ring_model import RingModel
from tests.support.sampling_oracle import flags
from tests.support.scripted_model import F, encoding, finish_of, ids_of, tokenizer

SHAPE = Shape(
    layers=2,
    hidden=32,
    intermediate=32,
    experts=4,
    active=2,
    heads=2,
    kv_heads=1,
    head_dim=16,
    vocab=VOCAB_SIZE,
    window=16,
)
PROMPT: list[int] = (
    np.random.default_rng(5).integers(0, 199998, 40).tolist()
)  # past the window, many chunks
CALLS = {"tools": [F], "response_format": {"type": "json_object"}}
ANALYSIS = 35644  # the channel's name, an ordinary token
PERMITTED = {
    "<|channel|>analysis<|message|>": END,
    "<|channel|>commentary<|message|>": END,
    "<|channel|>final<|message|>": RETURN,
    "<|channel|>final <|constrain|>json<|message|>": RETURN,
    " to=functions.f<|channel|>commentary <|constrain|>json<|message|>": CALL,
    " to=functions.f<|channel|>commentary<|message|>": CALL,
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>": CALL,
    "<|channel|>commentary to=functions.f<|message|>": CALL,
}


@pytest.fixture(scope="module", params=ENGINES)
def opened(request: pytest.FixtureRequest, checkpoint_of: Callable[..., Path]) -> Engine:
    engine = engine_on(request.param, checkpoint_of(SHAPE), context=100)
    engine.model.chunk = 7
    return engine


@pytest.fixture
def engine(opened: Engine) -> Engine:
    """The one engine, with nothing to reuse."""
    opened._loop.idle.sessions = ()
    opened._loop.idle.store.root.children.clear()
    return opened


def run(engine: Engine, prompt: Any = PROMPT, **options: Any) -> list[Event]:
    return list(engine.stream(prompt, **options))


def last_logits(engine: Engine, ids: Sequence[int]) -> NDArray[np.float64]:
    """The logits after a whole sequence, read in one piece."""
    state = engine.model.new_state()
    found = np.asarray(engine.model.evaluate(ids, state))[-1].astype(np.float64)
    state.close()
    return found


def greedy(
    engine: Engine,
    prompt: Sequence[int],
    tokens: int,
    *,
    change: Callable[[NDArray[np.float64], list[int]], None] = lambda scores, new: None,
    masks: bool = False,
) -> list[int]:
    """The plain loop: everything computed again for each token. change: scores in place."""
    compiler = Compiler(lambda: encoding().trie, VOCAB_SIZE)
    state: Any = Constraint(**CALLS).harmony(encoding(), compiler, VOCAB_SIZE)
    new: list[int] = []
    while len(new) < tokens:
        scores = last_logits(engine, [*prompt, *new])
        change(scores, new)
        id = int(np.argmax(masked(scores, state.mask) if masks else scores))
        new.append(id)
        state = state.advance(id)
        if id in (RETURN, CALL, 199999):
            break
    return new


def masked(scores: NDArray[np.float64], mask: Mask) -> NDArray[np.float64]:
    return np.where(flags(mask, len(scores)), scores, -np.inf)


def test_logits_are_those_of_one_pass_whatever_the_chunk(engine: Engine) -> None:
    whole = np.asarray(engine.model.evaluate(PROMPT, engine.model.new_state()))
    found = engine.logits(PROMPT)
    assert found.shape == (len(PROMPT), VOCAB_SIZE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max())
    np.testing.assert_array_equal(engine.logits(np.array(PROMPT)), found)  # type: ignore[arg-type]


def test_logits_check_their_ids(engine: Engine) -> None:
    with pytest.raises(MessageError, match="empty"):
        engine.logits([])
    with pytest.raises(MessageError, match=f"token id {VOCAB_SIZE} is outside"):
        engine.logits([VOCAB_SIZE])
    with pytest.raises(ContextError, match="has 101 tokens, but the context holds 100"):
        engine.logits([1] * 101)


def test_greedy_raw_is_the_plain_loop(engine: Engine) -> None:
    events = run(engine, raw=True, temperature=0, max_tokens=12)
    assert ids_of(events) == greedy(engine, PROMPT, 12)


def test_greedy_with_penalties_and_bias_is_the_plain_loop(engine: Engine) -> None:
    bias = {PROMPT[0]: 9.0, 64: 8.5}

    def change(scores: NDArray[np.float64], new: list[int]) -> None:
        seen = [*{*PROMPT, *new}]
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / 1.3, scores[seen] * 1.3)
        for id in set(new):
            scores[id] -= 0.7 + 0.4 * new.count(id)
        for id, value in bias.items():
            scores[id] += value

    options = {"repetition_penalty": 1.3, "presence_penalty": 0.7, "frequency_penalty": 0.4}
    events = run(engine, raw=True, temperature=0, max_tokens=12, logit_bias=bias, **options)
    expected = greedy(engine, PROMPT, 12, change=change)
    assert len(set(expected)) > 4
    assert len(set(expected)) < 12  # tokens do repeat
    assert ids_of(events) == expected


def ending(bias: float) -> dict[int, float]:
    return dict.fromkeys((END, RETURN, CALL), bias)


@pytest.mark.parametrize("bias", [-5.0, 12.0])
def test_greedy_with_the_grammar_is_the_plain_loop_under_its_masks(
    engine: Engine, bias: float
) -> None:
    def change(scores: NDArray[np.float64], new: list[int]) -> None:
        scores[[END, RETURN, CALL]] += bias

    events = run(engine, temperature=0, max_tokens=12, logit_bias=ending(bias), **CALLS)
    expected = greedy(engine, PROMPT, 12, change=change, masks=True)
    assert ids_of(events) == expected
    plain = run(engine, temperature=0, max_tokens=12, constrain_headers=False)
    assert ids_of(plain) == greedy(engine, PROMPT, 12)
    assert ids_of(plain)[0] != expected[0]


def improvised() -> Engine:
    """The real sampler on logits drawn at random: as much as grammar and loop see of a model."""
    rng = np.random.default_rng(6)
    logits = [mx.array(rng.normal(0, 2, VOCAB_SIZE).astype(np.float32)) for _ in range(7)]
    operations = Operations(VOCAB_SIZE)
    model: Any = RingModel(
        chunk=64,
        predict=lambda tokens: logits[len(tokens) % len(logits)],
        sampler=lambda *asked: RuledSampler(operations, *asked),
    )
    model.choose = lambda rows, draws: operations.choose(mx.stack(rows), draws)
    config: Any = SimpleNamespace(vocab_size=VOCAB_SIZE)
    return Engine(model, tokenizer(), config, 4096, {})


@pytest.mark.slow
def test_every_header_of_fifty_streams_is_permitted() -> None:
    engine = improvised()
    headers: list[str] = []
    for seed in range(50):
        bias = {**ending(15.0), CHANNEL: 4.0, ANALYSIS: 2.0}
        events = run(engine, "hi", seed=seed, max_tokens=24, logit_bias=bias, **CALLS)
        ids = ids_of(events)
        parser = Parser(encoding())
        for id in ids:
            parser.feed(id)
        parser.finish()
        *ended, last = encoding().decode(ids).removesuffix("<|start|>").split("<|start|>assistant")
        whole = [part for part in (*ended, last) if "<|message|>" in part]
        assert whole[: len(ended)] == ended
        assert last in whole or any(header.startswith(last) for header in PERMITTED)
        found = [part[: part.index("<|message|>") + len("<|message|>")] for part in whole]
        assert set(found) <= set(PERMITTED)
        for header, part in zip(found, ended, strict=False):
            assert part.endswith(encoding().decode([PERMITTED[header]]))
        for header, message in zip(found, parser.messages, strict=True):
            assert f"<|channel|>{message.channel}" in header
            assert message.recipient == ("functions.f" if "to=" in header else None)
        headers += found
        shown = "".join(e.text + e.markup for e in events if isinstance(e, TokenEvent))
        assert shown == encoding().decode(ids)
        assert (finish_of(events).reason == "length") == (ids[-1] not in (RETURN, CALL))
    assert len(headers) > 80
    assert len(set(headers)) >= 6


def tokens_of(events: Sequence[Event]) -> list[TokenEvent]:
    return [event for event in events if isinstance(event, TokenEvent)]


def assert_same(a: Sequence[Event], b: Sequence[Event]) -> None:
    """The same tokens, and the model's own probabilities of them within 1e-5."""
    assert ids_of(a) == ids_of(b)
    for x, y in zip(tokens_of(a), tokens_of(b), strict=True):
        assert (x.text, x.markup, x.channel) == (y.text, y.markup, y.channel)
        assert x.logprob == pytest.approx(y.logprob, abs=1e-5)


SEEDED: dict[str, Any] = {"seed": 11, "max_tokens": 6, "logprobs": True}


@pytest.mark.parametrize("raw", [False, True])
def test_a_seed_repeats_whatever_ran_in_between(engine: Engine, raw: bool) -> None:
    first = run(engine, raw=raw, **SEEDED)
    assert finish_of(first).timings.reused_tokens == 0
    others: list[Any] = [PROMPT, [*PROMPT, *ids_of(first)[:3], 7], PROMPT[::-1], "hi"]
    for number, other in enumerate(others):
        run(engine, other, max_tokens=1 + 4 * number, seed=3)
        again = run(engine, raw=raw, **SEEDED)
        assert finish_of(again).seed == 11
        assert_same(again, first)
    assert finish_of(run(engine, raw=raw, **SEEDED)).timings.reused_tokens == len(PROMPT) - 1
    assert ids_of(run(engine, raw=raw, **{**SEEDED, "seed": 12})) != ids_of(first)


def test_a_drawn_seed_repeats_the_stream(engine: Engine) -> None:
    first = run(engine, raw=True, max_tokens=6)
    assert ids_of(run(engine, raw=True, max_tokens=6, seed=finish_of(first).seed)) == ids_of(first)


def test_logprobs_are_those_of_the_logits(engine: Engine) -> None:
    options = {"temperature": 0.5, "top_k": 9, "top_p": 0.5, "logit_bias": {64: 10}}
    events = run(engine, raw=True, top_logprobs=2, **options, **SEEDED)
    ids = ids_of(events)
    rows = engine.logits([*PROMPT, *ids[:-1]])[len(PROMPT) - 1 :].astype(np.float64)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    for event, row in zip(tokens_of(events), rows, strict=True):
        assert event.logprob == pytest.approx(row[event.id], abs=1e-5)
        best = np.argsort(-row)[:2]
        assert [id for id, _ in event.top_logprobs] == best.tolist()
        assert [v for _, v in event.top_logprobs] == pytest.approx(row[best].tolist(), abs=1e-5)


def test_interleaved_streams_are_as_if_alone(engine: Engine) -> None:
    prompts: list[Any] = [PROMPT, PROMPT[:30], "hi"]
    alone = [run(engine, prompt, **SEEDED) for prompt in prompts]
    streams: list[Iterator[Event]] = [engine.stream(prompt, **SEEDED) for prompt in prompts]
    turns = list(zip_longest(*streams))
    for column, expected in zip(zip(*turns, strict=True), alone, strict=True):
        assert_same([event for event in column if event is not None], expected)


def test_streams_side_by_side_are_as_if_alone(engine: Engine) -> None:
    prompts: list[Any] = [PROMPT, PROMPT[:30], "hi", PROMPT[5:], [7]]
    alone = [run(engine, prompt, **SEEDED) for prompt in prompts]
    found: list[list[Event]] = [[] for _ in prompts]
    for i, event in engine.stream_many(prompts, **SEEDED):
        found[i].append(event)
    for events, expected in zip(found, alone, strict=True):
        assert_same(events, expected)


def test_streams_of_several_threads_are_as_if_alone(engine: Engine) -> None:
    prompts: list[Any] = [PROMPT, PROMPT[:30], "hi"]
    alone = [run(engine, prompt, **SEEDED) for prompt in prompts]
    found: list[list[Event]] = [[] for _ in prompts]

    def read(number: int) -> None:
        found[number] += run(engine, prompts[number], **SEEDED)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for events, expected in zip(found, alone, strict=True):
        assert_same(events, expected)


def test_reuse_gives_what_reading_all_again_gives(engine: Engine) -> None:
    """Turns that go on, go back, or part ways inside and outside of the window."""
    sequence, rng = PROMPT, np.random.default_rng(7)
    for cut, new in ((None, 9), (None, 20), (-12, 3), (45, 10), (40, 1), (3, 50), (None, 2)):
        sequence = [*sequence[:cut], *rng.integers(0, 199998, new).tolist()]
        found = run(engine, sequence, raw=True, **SEEDED)
        idle = engine._loop.idle
        sessions, idle.sessions = idle.sessions, ()
        idle.store.root.children.clear()
        assert_same(found, run(engine, sequence, raw=True, **SEEDED))
        idle.sessions = sessions
        sequence = [*sequence, *ids_of(found)]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_stream_left_early_spoils_nothing(engine: Engine, cancelled: bool) -> None:
    expected = run(engine, raw=True, **SEEDED)
    seen: list[int] = []
    cancel = (lambda: len(seen) == 4) if cancelled else None
    for event in engine.stream(PROMPT[:33], raw=True, seed=2, cancel=cancel):
        if isinstance(event, TokenEvent) and event.id is not None:
            seen.append(event.id)
        if len(seen) == 4 and not cancelled:
            break
    assert len(seen) == 4
    assert_same(run(engine, raw=True, **SEEDED), expected)


def test_an_interrupted_step_spoils_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(engine, raw=True, **SEEDED)
    decode, steps = engine.model.decode, []

    def interrupted(tokens: Any, states: Any) -> Any:
        steps.append(1)
        logits = decode(tokens, states)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(engine, PROMPT, raw=True, seed=2)
    assert_same(run(engine, raw=True, **SEEDED), expected)


def test_the_context_can_be_filled_to_the_last_token(engine: Engine) -> None:
    ids = [*PROMPT] * 3
    events = run(engine, ids[:97], raw=True, temperature=0)
    assert len(ids_of(events)) == 3
    assert finish_of(events).reason == "length"
    assert ids_of(events) == greedy(engine, ids[:97], 3)


@pytest.mark.parametrize("context", [1, 0, -5, 131073])
def test_a_context_beyond_the_model_is_refused(
    checkpoint_of: Callable[..., Path], context: int
) -> None:
    with pytest.raises(ContextError, match=f"^a context of {context} tokens is not within 2 to"):
        gptoss_mlx.load(str(checkpoint_of(SHAPE)), context=context)


def test_stats_name_the_bytes_in_use(engine: Engine) -> None:
    run(engine, raw=True, max_tokens=3)
    stats = engine.stats()
    assert stats["session_tokens"] == len(PROMPT) + 2
    key_bytes = 2 * 16 * 4  # a key and a value of 16 float32
    assert stats["snapshot_bytes"] == 2 * key_bytes * SHAPE.window  # of the prompt, the answer
    assert stats["kv_bytes"] >= key_bytes * (SHAPE.window + len(PROMPT))
    assert stats["active_bytes"] > 2 * VOCAB_SIZE * 32
