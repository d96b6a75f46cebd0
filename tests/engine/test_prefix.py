"""The prefix store: what is read again, counted; what goes first; and that answers never change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_mlx.backends.protocol import AnyModel
from gptoss_mlx.backends.state import layout_bytes
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event, TokenEvent
from gptoss_mlx.engine.marks import LEAST, PIECE, marks_of
from gptoss_mlx.engine.prefix import Node, PrefixStore, root_name
from gptoss_mlx.engine.prefix import _header as prefix_header
from gptoss_mlx.engine.session import Session
from gptoss_mlx.files.sealed import write_sealed
from gptoss_mlx.files.store import OWNER_DIGITS, FileStore
from gptoss_mlx.harmony import render
from gptoss_mlx.harmony.encoding import ANALYSIS as ANALYSIS_ID
from gptoss_mlx.harmony.encoding import ASSISTANT, CHANNEL, START, USER
from tests.support.agent import Agent, tools
from tests.support.backends import ENGINES, engine_on
from tests.support.checkpoints import Shape
from tests.support.ring_model import RingModel, RingSegment, RingState
from tests.support.scripted_model import (
    Scripted,
    encoding,
    finish_of,
    ids_of,
)

RAW: dict[str, Any] = {"raw": True}
END = 199999
SHAPE = Shape(2, 64, 32, 4, 2, 4, 2, 32, window=8)


def common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length


@dataclass
class Talk:
    """A scripted engine on which agents talk; `read`: tokens read again, and those never seen."""

    scripted: Scripted
    seen: list[NDArray[np.int64]]
    read: list[tuple[int, int]]

    def ask(self, agent: Agent) -> None:
        """One request of an agent, whose reply is already known."""
        ids = render(encoding(), agent.messages, tools=agent.tools)
        reply = encoding().encode_special(agent.reply)
        self.scripted.replies[:] = [reply]
        options: dict[str, Any] = {"tools": agent.tools, "constrain_headers": False}
        events = list(self.scripted.engine.stream(agent.messages, **options))
        assert ids_of(events) == reply
        timings = finish_of(events).timings
        asked = np.array(ids)
        new = len(ids) - 1 - max((common(asked[:-1], seen) for seen in self.seen), default=0)
        assert timings.reused_tokens + timings.prefill_tokens == len(ids) - 1
        self.read.append((timings.prefill_tokens, new))
        self.seen.append(np.concatenate([asked, reply]))
        agent.heard()


@pytest.mark.parametrize(("rows", "turns"), [(1, 20), (2, 7), (3, 7)])
def test_an_agent_reads_only_what_is_new(rows: int, turns: int, tmp_path: Path) -> None:
    """Turns of two conversations with one system prompt and tools, calls, reasoning that is
    dropped, and a restart in the middle of both."""
    scripted = Scripted(window=16, chunk=512, context=131072, cache=1 << 30, cache_dir=tmp_path)
    scripted.model.rows = rows
    talk = Talk(scripted, [], [])
    agents = [Agent(name, tools(8), words=20) for name in ("one", "two")]
    while any(agent.turns < turns for agent in agents):
        if len(talk.read) == 2 * turns + 1:
            scripted.engine.close()
            scripted.open(1 << 30, tmp_path)
        talk.ask(agents[len(talk.read) % 2])
    assert len(talk.read) > 3 * turns
    assert all(read <= new + LEAST for read, new in talk.read)
    assert scripted.engine.notes == ()
    scripted.engine.close()


def test_a_chat_with_one_row_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(*anything: Any) -> None:
        raise AssertionError("a segment was copied")

    scripted = Scripted(window=16, chunk=512, context=131072, cache=1 << 30)
    scripted.model.rows = 1
    monkeypatch.setattr(RingState, "segment", copied)
    talk, agent = Talk(scripted, [], []), Agent("one", tools(2))
    while agent.turns < 5:
        talk.ask(agent)
    assert all(read <= new + LEAST for read, new in talk.read)
    assert scripted.store.nbytes == 0
    assert scripted.engine.notes == ()
    assert len(scripted.model.states) == 1


def test_one_system_prompt_is_kept_once() -> None:
    scripted = Scripted(window=16, chunk=512, context=131072, cache=1 << 30)
    scripted.model.rows = 1
    talk = Talk(scripted, [], [])
    shared = tools(12)
    for number in range(6):
        talk.ask(Agent(f"another {number}", shared))
    nodes = [*scripted.store._nodes()]
    assert [node.start for node in nodes].count(0) == 1
    (described,) = (node for node in nodes if len(node.tokens) > 500)
    assert len(described.children) == 5  # the sixth is live
    assert all(read < 200 for read, _ in talk.read[1:])


def test_where_a_row_is_free_a_conversation_stays_live_and_its_copy_goes_on() -> None:
    for rows in (1, 2):
        scripted = Scripted(window=16, chunk=512, context=131072, cache=1 << 30)
        scripted.model.rows = rows
        talk, shared = Talk(scripted, [], []), tools(2)
        agents = [Agent(name, shared) for name in ("one", "two")]
        for agent in agents:
            talk.ask(agent)
        assert len(scripted.engine._loop.idle.sessions) == rows
        before = scripted.store.tokens_restored
        talk.ask(agents[0])
        assert (scripted.store.tokens_restored == before) == (rows == 2)
        assert all(read <= new + LEAST for read, new in talk.read)


def test_what_another_reads_just_now_is_shared() -> None:
    scripted = Scripted([64] * 50 + [END], [65, END], window=8, chunk=16, cache=1 << 20)
    talk = [{"role": "user", "content": text} for text in ("one", "two")]
    options: dict[str, Any] = {"system": "Be brief. " * 40, "constrain_headers": False}
    first = scripted.engine.stream(talk[:1], **options)
    while not isinstance(next(first), TokenEvent):
        pass
    second = list(scripted.engine.stream(talk[1:], **options))
    ids = render(encoding(), talk[1:], system=options["system"])
    assert finish_of(second).timings.reused_tokens == ids.index(USER)
    assert ids_of(list(first))[-1] == END
    check(scripted.store)


@pytest.mark.parametrize("rows", [1, 3])
def test_prompts_that_arrive_together_read_what_they_share_once(rows: int) -> None:
    scripted = Scripted(*[[64, END]] * 5, window=8, chunk=16, context=8192, cache=1 << 20)
    scripted.model.rows = rows
    talks = [[{"role": "user", "content": text}] for text in ("one", "two", "three", "four", "5")]
    system = "Be brief. " * 40
    events: list[list[Event]] = [[] for _ in talks]
    options: dict[str, Any] = {"system": system, "constrain_headers": False}
    for i, event in scripted.engine.stream_many(talks, **options):
        events[i].append(event)
    head = render(encoding(), talks[0], system=system).index(USER)
    assert head > 60
    assert [finish_of(one).timings.reused_tokens for one in events] == [0, head, head, head, head]
    check(scripted.store)


# The tree itself, on a model that only remembers.

WINDOW = 4


def session_of(model: RingModel, ids: Sequence[int], ends: Sequence[int]) -> Session:
    session = Session(cast(AnyModel, model))
    for begin, end in zip((0, *ends), (*ends, len(ids)), strict=True):
        list(session.prefill(ids[begin:end]))
        session.mark()
    return session


def check(store: PrefixStore) -> None:
    """Every node holds what it says, and the bytes are those of what is held."""
    held = 0
    paths: list[tuple[Node, list[int]]] = [(store.root, [])]
    while paths:
        node, before = paths.pop()
        for child in node.children.values():
            segment, ids = child.segment, [*before, *child.tokens]
            assert isinstance(segment, RingSegment)
            assert (segment.start, segment.end) == (child.start, child.end)
            assert child.start == len(before)
            assert [getattr(t, "id", t) for t in segment.arena] == list(child.tokens)
            known = min(len(segment.ring) - 1, child.end)
            for at in range(child.end - known, child.end):
                token = segment.ring[at % len(segment.ring)]
                assert getattr(token, "id", token) == ids[at]
            held += segment.nbytes
            assert segment.nbytes == layout_bytes(store.model.layout(len(child.tokens)))
            paths.append((child, ids))
    assert store.nbytes == held <= store.budget or not store.budget


def test_the_longest_of_several_prefixes_is_found() -> None:
    model = RingModel(window=WINDOW, chunk=4)
    store = PrefixStore(cast(AnyModel, model), 1 << 20)
    store.insert(session_of(model, range(20), [6, 12]))
    store.insert(session_of(model, [*range(12), 50, 51, 52], [8, 14]))
    check(store)
    for ids, found in (
        (range(30), 20),
        (range(20), 12),
        (range(13), 12),
        (range(12), 6),  # the second went on from what the first had, not from 8
        (range(7), 6),
        (range(6), 0),
        ([*range(12), 50, 51, 99], 14),
        ([9, *range(12)], 0),
    ):
        path = store.find(list(ids))
        assert (path[-1].end if path else 0) == found
        if path:
            session = store.restore(path)
            assert session.tokens == list(ids)[:found]
            assert cast(RingState, session.state).held() == session.tokens
            assert session.resume(list(ids)) == found


def test_the_leaf_used_longest_ago_goes_first() -> None:
    model = RingModel(window=WINDOW, chunk=64)
    each = 4 * (10 + WINDOW)
    store = PrefixStore(cast(AnyModel, model), 4 * each)
    head = list(range(10))
    talks = [[*head, *range(n, n + 10)] for n in (100, 200, 300, 400)]
    for talk in talks[:3]:
        store.insert(session_of(model, talk, [10]))
    assert store.nbytes == 4 * each
    assert [store.find([*talk, 7])[-1].end for talk in talks[:3]] == [20, 20, 20]
    store.find([*talks[0], 7])
    store.insert(session_of(model, talks[3], [10]))
    ends = [store.find([*talk, 7])[-1].end for talk in talks]
    assert ends == [20, 10, 20, 20]
    check(store)
    store.insert(session_of(model, list(range(500, 530)), [10, 20]))
    assert store.find([*range(500, 530), 7])[-1].end == 30
    assert store.find([*head, 7]) != [] or store.nbytes == 3 * each
    check(store)


def test_a_path_is_not_removed_to_make_room_for_its_own_end() -> None:
    model = RingModel(window=WINDOW, chunk=64)
    store = PrefixStore(cast(AnyModel, model), 3 * 4 * (10 + WINDOW))
    for begin in (0, 100, 200):
        store.insert(session_of(model, range(begin, begin + 10), []))
    store.insert(session_of(model, range(20), [10]))
    assert store.find([*range(21)])[-1].end == 20
    assert store.find([*range(100, 111)]) == []
    check(store)


def test_what_is_too_large_is_kept_as_far_as_it_fits() -> None:
    model = RingModel(window=WINDOW, chunk=64)
    store = PrefixStore(cast(AnyModel, model), 4 * (20 + 2 * WINDOW) + 3)
    store.insert(session_of(model, range(30), [10, 20]))
    assert store.find([*range(31)])[-1].end == 20
    store.insert(session_of(model, range(100, 200), []))
    assert store.find([*range(31)])[-1].end == 20
    check(store)


def test_an_error_of_the_device_turns_the_store_off_and_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*anything: Any) -> None:
        raise RuntimeError("out of memory")

    for name, owner in (("segment", RingState), ("restore", RingModel)):
        scripted = Scripted(*[[64, END]] * 4, cache=1 << 20)
        scripted.model.rows = 1
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            for first in (1, 5, 1, 5):
                prompt = [first, *range(10, 40)]
                assert ids_of(list(scripted.engine.stream(prompt, **RAW))) == [64, END]
        assert scripted.store.nbytes == 0
        (note,) = scripted.engine.notes
        assert "out of memory" in note


def test_a_file_with_other_tokens_than_its_name_says_is_not_used(tmp_path: Path) -> None:
    model = cast(AnyModel, RingModel(window=WINDOW, chunk=64))
    owner = root_name("")[:OWNER_DIGITS]

    def opened() -> PrefixStore:
        return PrefixStore(model, 1 << 20, "", FileStore(tmp_path, 1 << 20, owner, 1 << 20))

    store = opened()
    store.insert(session_of(cast(RingModel, model), range(30), []))
    (node,) = store.root.children.values()
    store.close()
    assert [n.end for n in opened().find([*range(31)])] == [30]
    (path,) = tmp_path.iterdir()
    layout = {"tokens": ("U32", (30,)), **model.layout(30)}
    forged = np.arange(1, 31 + 30 + WINDOW, dtype=np.uint32).view(np.uint8)
    path.unlink()
    header = prefix_header(store._entry(node), 0, layout)
    write_sealed(path, tmp_path / "tmp", header, [forged])
    assert opened().find([*range(31)]) == []


# On every backend: the same tokens.


@pytest.fixture(scope="module", params=[*ENGINES, "mlx, 8 bits"])
def plain(request: pytest.FixtureRequest, checkpoint_of: Callable[..., Path]) -> Iterator[Engine]:
    """An engine without a store, which never has anything to reuse; its model serves the others."""
    backend, _, bits = request.param.partition(", ")
    options = {"kv_bits": 8} if bits else {}
    with engine_on(backend, checkpoint_of(SHAPE), context=400, cache=0, **options) as engine:
        engine.model.chunk = 16
        yield engine


def with_store(plain: Engine, budget: int, folder: Path | None, limit: int = 1 << 30) -> Engine:
    """An engine on the same model, with a prefix store."""
    files = None
    if folder is not None:
        files = FileStore(folder, limit, root_name("x")[:OWNER_DIGITS], 1 << 20)
    store = PrefixStore(plain.model, budget, "x", files)
    tokenizer, config = plain.tokenizer, plain.config
    return Engine(plain.model, tokenizer, config, plain.context, {}, store=store)


def alone(plain: Engine, prompt: Sequence[int], seed: int) -> list[int]:
    for session in plain._loop.idle.sessions:
        session.close()
    plain._loop.idle.sessions = ()
    return said(plain, prompt, seed)


def options(seed: int) -> dict[str, Any]:
    """Of greedy requests, and of a few that draw."""
    return {"raw": True, "max_tokens": 3, "seed": seed, "temperature": float(seed % 4 == 3)}


def said(engine: Engine, prompt: Sequence[int], seed: int) -> list[int]:
    return ids_of(list(engine.stream(list(prompt), **options(seed))))


@dataclass(frozen=True)
class Step:
    """A prompt: so much of what a conversation holds, and so many new tokens; beside another."""

    talk: int
    keep: int
    new: int
    beside: bool
    restart: bool


STEPS = st.builds(
    Step,
    talk=st.integers(0, 3),
    keep=st.integers(0, 90),
    new=st.integers(1, 40),
    beside=st.booleans(),
    restart=st.integers(0, 5).map(lambda n: n == 0),
)
BUDGETS = st.sampled_from([0, 3_000, 20_000, 60_000, 1 << 24])


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=st.lists(STEPS, min_size=3, max_size=8),
    budget=BUDGETS,
    limit=st.sampled_from([0, 30_000, 1 << 30]),
    head=st.integers(0, 60),
)
def test_the_tokens_are_those_without_a_store(
    steps: list[Step],
    budget: int,
    limit: int,
    head: int,
    plain: Engine,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("cache") if limit else None
    engine = with_store(plain, budget, folder, limit)
    rng = np.random.default_rng(head)
    fresh = lambda n: rng.integers(0, 199998, n).tolist()  # noqa: E731
    shared = fresh(head)
    talks = [[*shared, *fresh(3)] for _ in range(4)]
    for seed, step in enumerate(steps):
        if step.restart:
            engine.close()
            engine = with_store(plain, budget, folder, limit)
        talk = talks[step.talk]
        prompt = [*talk[: step.keep if step.keep < 60 else None], *fresh(step.new)][:300]
        other = talks[step.talk - 1]
        if step.beside:
            both = [prompt, [*other, 5]]
            found: list[list[int]] = [[], []]
            for i, event in engine.stream_many(both, **options(seed)):
                found[i] += ids_of([event])
            assert found == [alone(plain, prompt, seed), alone(plain, [*other, 5], seed)]
        else:
            found = [said(engine, prompt, seed)]
            assert found == [alone(plain, prompt, seed)]
        talks[step.talk] = [*prompt, *found[0]]
        assert engine.stats()["store_bytes"] <= budget
    for session in engine._loop.idle.sessions:
        session.state.close()  # a model that many engines share keeps no rows of theirs
    engine.close()
    assert engine.notes == ()


def test_a_restart_reads_from_the_disk(plain: Engine, tmp_path: Path) -> None:
    talks = [[*range(50), *range(n, n + 60)] for n in (100, 200)]
    with with_store(plain, 1 << 24, tmp_path) as engine:
        replies = [said(engine, talk, 1) for talk in talks]
    with with_store(plain, 1 << 24, tmp_path) as engine:
        for talk, reply in zip(talks, replies, strict=True):
            prompt = [*talk, *reply, 9]
            events = list(engine.stream(prompt, **options(2)))
            assert ids_of(events) == alone(plain, prompt, 2)
            # the last token was never an input, and the one before ends no snapshot
            assert finish_of(events).timings.reused_tokens == len(talk) + len(reply) - 2
        assert engine.stats()["store_tokens"] == 2 * (len(talk) + len(reply) - 2)
        assert engine.stats()["store_bytes"] == sum(
            len(data)
            for node in engine._loop.idle.store._nodes()
            for data in plain.model.to_host(cast(Any, node.segment))
        )


def test_damage_to_any_file_changes_no_answer(plain: Engine, tmp_path: Path) -> None:
    talk, others = list(range(120)), [*range(60), *range(300, 330)]
    with with_store(plain, 1 << 24, tmp_path) as engine:
        said(engine, others, 1)
        said(engine, talk, 1)
        said(engine, [*talk, *range(400, 450)], 1)
    expected = alone(plain, [*talk, 8], 3)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) >= 3
    for damaged in paths:
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with with_store(plain, 1 << 24, tmp_path) as engine:
            assert said(engine, [*talk, 8], 3) == expected
            assert said(engine, [*others, 8], 3) == alone(plain, [*others, 8], 3)
            assert len(engine.notes) <= 1
        with with_store(plain, 1 << 24, tmp_path) as engine:  # it was written anew
            assert said(engine, [*talk, 8], 3) == expected
            assert engine.notes == ()
        damaged.write_bytes(whole)


def test_files_of_another_model_are_left_out(plain: Engine, tmp_path: Path) -> None:
    with with_store(plain, 1 << 24, tmp_path) as engine:
        said(engine, range(50), 1)
    files_before = len(os.listdir(tmp_path))
    files = FileStore(tmp_path, 1 << 30, root_name("y")[:OWNER_DIGITS], 1 << 20)
    engine = Engine(
        plain.model,
        plain.tokenizer,
        plain.config,
        plain.context,
        {},
        store=PrefixStore(plain.model, 1 << 24, "y", files),
    )
    with engine:
        events = list(engine.stream(list(range(50)), raw=True, max_tokens=1))
        assert finish_of(events).timings.reused_tokens == 0
        (note,) = engine.notes
        assert note.endswith(f"left out: {files_before} of other origin")


def test_marks_are_where_prompts_part() -> None:
    def message(role: int, length: int) -> list[int]:
        return [START, role, *[5] * length]

    system = message(17360, 5000)
    ids = [*system, *message(USER, 300), START, ASSISTANT, CHANNEL, ANALYSIS_ID, 5]
    reply = len(ids) - 4
    ids += [*message(ASSISTANT, 900), *message(USER, 10), START, ASSISTANT]
    marks = marks_of(ids, harmony=True)
    assert (marks.head, marks.reply) == (len(system) + 1, reply)
    assert {marks.head, reply, len(ids) - 1} <= {*marks.positions}
    assert {PIECE, 2 * PIECE} <= {*marks.positions}
    assert all(0 < at < len(ids) for at in marks.positions)
    raw = marks_of(ids[:5000], harmony=False)
    assert raw.positions == (PIECE, 2 * PIECE, 4999)
    assert marks_of([1], harmony=False).positions == ()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 400), max_size=60))
def test_marks_are_few_and_neither_close_nor_far_apart(lengths: list[int]) -> None:
    ids = [id for n in lengths for id in (START, USER if n % 2 else ASSISTANT, *[5] * n)]
    ids += [START, ASSISTANT]
    marks = marks_of(ids, harmony=True)
    positions = (0, *marks.positions)
    assert len(positions) <= 12 + 4 * np.log(len(ids)) + len(ids) / PIECE
    gaps = np.diff(positions)
    assert (gaps > 0).all()
    assert (gaps <= PIECE + LEAST).all()
    asked = max((i for i, id in enumerate(ids) if id == USER), default=0)
    named = {marks.head, asked, marks.reply, len(ids) - 1}
    for before, after in pairwise(positions):
        assert after - before >= LEAST or after in named
