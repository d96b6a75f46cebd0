"""Continuous batching: sequences come, fail, are cancelled and leave while others go on, from any
thread; each says what it would say alone."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from gptoss_mlx.engine import engine as engine_module
from gptoss_mlx.engine import idle, inbox, loop, prefix, session
from gptoss_mlx.engine import sequence as sequence_module
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event, FinishEvent, PrefillEvent, TokenEvent
from gptoss_mlx.engine.sequence import Sequence
from gptoss_mlx.errors import ClosedError, MessageError
from tests.engine.test_prefix import check
from tests.support.interrupts import everywhere
from tests.support.ring_model import RingState
from tests.support.scripted_model import Scripted, finish_of, ids_of

PROMPT = list(range(100, 140))
END = 199999
RAW: dict[str, Any] = {"raw": True}


class Sink:
    """An outlet that is never full: what a server's queue is."""

    def __init__(self, on_event: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.on_event = on_event

    def put(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def fail(self, error: BaseException) -> None:
        self.error = error

    def is_full(self) -> bool:
        return False


def added(scripted: Scripted, prompt: Any, **options: Any) -> tuple[Sequence, Sink]:
    sink = Sink()
    return scripted.engine.add(prompt, sink, **RAW, **options), sink


def run(engine: Engine, most: int = 1000) -> int:
    """Steps until there is nothing to do; their number."""
    for steps in range(most):
        if engine.finished:
            return steps
        engine.step()
    raise AssertionError("the loop does not end")


def reply(id: int, length: int) -> list[int]:
    return [id] * length + [END]


def test_three_decode_together_and_a_fourth_takes_the_first_free_row() -> None:
    scripted = Scripted(reply(64, 9), reply(65, 5), reply(66, 9), reply(67, 9))
    sinks = [added(scripted, [i + 1])[1] for i in range(4)]
    run(scripted.engine)
    assert [ids_of(sink.events)[0] for sink in sinks] == [64, 65, 66, 67]
    assert [len(ids_of(sink.events)) for sink in sinks] == [10, 6, 10, 10]
    assert max(scripted.model.together) == scripted.model.rows == 3
    assert sum(scripted.model.together) == 11 + 7 + 11 + 11


def test_an_urgent_sequence_is_before_those_that_wait() -> None:
    scripted = Scripted(*[reply(64 + i, 5) for i in range(6)])
    for id in range(1, 6):
        added(scripted, [id])
    for _ in range(3):  # after which no row is free
        scripted.engine.step()
    added(scripted, [6], urgent=True)
    run(scripted.engine)
    assert [prompt[0] for _, _, prompt in scripted.samplings] == [1, 2, 3, 6, 4, 5]


def test_a_long_prompt_holds_nobody_up() -> None:
    """One chunk at a time, a quarter of what is read alone, and between two chunks a token of every
    sequence that decodes."""
    scripted = Scripted(reply(64, 30), reply(65, 3), reply(66, 3), chunk=16)
    _, first = added(scripted, [1, 2])
    while not ids_of(first.events):
        scripted.engine.step()
    said = len(ids_of(first.events))
    _, second = added(scripted, PROMPT)
    chunks = 0
    while not ids_of(second.events):
        scripted.engine.step()
        chunks = len([e for e in second.events if isinstance(e, PrefillEvent)]) - 1
    assert chunks == 10
    assert len(ids_of(first.events)) >= said + chunks
    run(scripted.engine)
    _, third = added(scripted, [2, *PROMPT])
    run(scripted.engine)
    assert [e.done for e in third.events if isinstance(e, PrefillEvent)] == [0, 16, 32, 40]


def test_sequences_come_and_are_cancelled_from_other_threads() -> None:
    count, length = 12, 40
    scripted = Scripted(*[[1000 + i] * length + [END] for i in range(count)])
    engine, sinks = scripted.engine, [Sink() for _ in range(count)]
    sequences: list[Sequence] = []
    ready, go_on = threading.Semaphore(0), threading.Event()

    def submit(numbers: range) -> None:
        for i in numbers:
            sequences.append(engine.add(PROMPT[: 1 + i], sinks[i], **RAW))
            ready.release()
        assert go_on.wait(60)
        sequences[0].cancel()
        ready.release()

    threads = [threading.Thread(target=submit, args=(range(i, count, 3),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(count):
        assert ready.acquire(timeout=60)
    for _ in range(20):
        engine.step()
    go_on.set()
    for _ in threads:
        assert ready.acquire(timeout=60)
    run(engine)
    for thread in threads:
        thread.join(60)
    reasons = [finish_of(sink.events).reason for sink in sinks]
    assert sorted(reasons) == ["cancelled"] + ["stop"] * (count - 1)
    said = sorted(
        tuple(ids_of(s.events)) for s, r in zip(sinks, reasons, strict=True) if r == "stop"
    )
    assert len(set(said)) == count - 1
    assert all(len(set(ids)) == 2 and len(ids) == length + 1 for ids in said)
    assert [tuple(ids_of(sink.events)) for sink in sinks].count(()) == 0


def test_one_that_waits_can_be_cancelled_and_dropped() -> None:
    scripted = Scripted(reply(64, 5), reply(65, 5))
    scripted.model.rows = 1
    added(scripted, [1])
    second, cancelled = added(scripted, [2])
    third, dropped = added(scripted, [3])
    added(scripted, [4])
    scripted.engine.step()
    second.cancel()
    scripted.engine.drop([third])
    scripted.engine.step()
    assert finish_of(cancelled.events).reason == "cancelled"  # though the only row is taken
    run(scripted.engine)
    assert ids_of(cancelled.events) == []
    assert dropped.events == []
    assert scripted.replies == []


@pytest.mark.parametrize(
    ("kind", "fails"),
    [("prefill", [False, True]), ("read", [True, False]), ("choose", [True, False])],
)
def test_what_fails_alone_fails_alone(kind: str, fails: list[bool]) -> None:
    """The second prompt is long, the first sequence is the first to choose and to read."""
    scripted = Scripted(reply(64, 9), reply(64, 9))
    scripted.fail(kind, 1 if kind == "prefill" else 0, RuntimeError("not this one"))
    sinks = [added(scripted, PROMPT[: 2 + 30 * i])[1] for i in range(2)]
    run(scripted.engine)
    assert [sink.error is not None for sink in sinks] == fails
    assert finish_of(sinks[fails.index(False)].events).reason == "stop"


def test_a_mask_that_cannot_be_computed_fails_its_sequence_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted = Scripted(reply(64, 9), reply(65, 9))
    sequences, sinks = zip(*(added(scripted, [i + 1]) for i in range(2)), strict=True)
    draw = Sequence.draw

    def failing(sequence: Sequence, row: int) -> Any:
        if sequence is sequences[0] and len(ids_of(sinks[0].events)) == 3:
            raise RuntimeError("the grammar is too large")
        return draw(sequence, row)

    monkeypatch.setattr(Sequence, "draw", failing)
    run(scripted.engine)
    assert str(sinks[0].error) == "the grammar is too large"
    assert ids_of(sinks[1].events) == reply(65, 9)


@pytest.mark.parametrize("kind", ["decode", "choose"])
def test_a_decode_step_fails_those_in_it_and_no_other(kind: str) -> None:
    scripted = Scripted(reply(64, 9), reply(65, 9), reply(66, 9), reply(67, 9))
    sinks = [added(scripted, [i + 1])[1] for i in range(4)]
    for _ in range(6):
        scripted.engine.step()
    scripted.fail(kind, 0, RuntimeError("out of memory"))
    run(scripted.engine)
    assert [str(sink.error) for sink in sinks[:3]] == ["out of memory"] * 3
    assert finish_of(sinks[3].events).reason == "stop"
    assert sum(move == "close" for state in scripted.model.states for move, _ in state.moves) >= 3


def test_an_interrupt_fails_the_step_and_is_raised() -> None:
    scripted = Scripted(reply(64, 9), reply(65, 9))
    _, first = added(scripted, [1])
    for _ in range(4):
        scripted.engine.step()
    scripted.fail("decode", 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        scripted.engine.step()
    assert isinstance(first.error, ClosedError)
    _, second = added(scripted, [2])
    run(scripted.engine)
    assert ids_of(second.events) == reply(65, 9)


def test_a_stream_that_is_read_drives_the_others_too() -> None:
    scripted = Scripted(reply(64, 4), reply(65, 9))
    _, sink = added(scripted, [1])
    assert ids_of(list(scripted.engine.stream([2], **RAW))) == reply(65, 9)
    assert ids_of(sink.events) == reply(64, 4)


def test_a_stream_nobody_reads_rests() -> None:
    scripted = Scripted(reply(64, 50), reply(65, 9))
    scripted.model.rows = 1
    waiting = scripted.engine.stream([1], **RAW)
    begun = [event for event in (next(waiting) for _ in range(3)) if isinstance(event, TokenEvent)]
    assert ids_of(list(scripted.engine.stream([2], **RAW))) == reply(65, 9)
    reads = scripted.count("read")
    assert reads <= len(begun) + 1 + 10
    assert ids_of([*begun, *waiting]) == reply(64, 50)


def test_streams_that_rest_take_no_row() -> None:
    scripted = Scripted(*[reply(64, 50)] * 3, *[reply(70 + i, 9) for i in range(3)])
    idle = [scripted.engine.stream([i + 1], **RAW) for i in range(3)]
    for stream in idle:
        assert isinstance(next(stream), PrefillEvent)
    scripted.model.together.clear()
    sinks = [added(scripted, [9 + i])[1] for i in range(3)]
    while not all(sink.events and isinstance(sink.events[-1], FinishEvent) for sink in sinks):
        scripted.engine.step()
    assert max(scripted.model.together) == 3
    assert scripted.engine._loop._active  # those that rest
    assert [len(ids_of([*stream])) for stream in idle] == [51] * 3


def test_where_more_are_ready_than_there_are_rows_they_take_turns() -> None:
    """A stream that rested is read again, beside what took its row."""
    scripted = Scripted(reply(64, 50), reply(65, 20))
    scripted.model.rows = 1
    stream = scripted.engine.stream([1], **RAW)
    next(stream)
    _, sink = added(scripted, [2])
    while not sink.events:
        scripted.engine.step()
    assert ids_of([*stream]) == reply(64, 50)
    assert ids_of(sink.events) == reply(65, 20)


@pytest.mark.parametrize("prompt", [[1], PROMPT], ids=["decoding", "prefilling"])
def test_a_sequence_that_was_dropped_keeps_nothing_of_the_model(prompt: list[int]) -> None:
    scripted = Scripted(reply(64, 50), chunk=4)
    sequence, _ = added(scripted, prompt)
    for _ in range(4):
        scripted.engine.step()
    states = [weakref.ref(state) for state in scripted.model.states]
    scripted.engine.drop([sequence])
    scripted.engine.close()
    scripted.model.states.clear()
    gc.collect()
    assert [state() for state in states] == [None]
    assert sequence.session is None


def test_what_waits_behind_unread_events_is_not_begun() -> None:
    scripted = Scripted(*[reply(64, 5)] * 9)
    scripted.model.rows = 2
    several = scripted.engine.stream_many([[i + 1] for i in range(8)], **RAW)
    next(several)
    list(scripted.engine.stream([99], **RAW))
    assert len(scripted.model.states) <= 3
    assert sum(isinstance(event, FinishEvent) for _, event in several) == 8


def test_a_step_within_a_step_is_refused() -> None:
    scripted = Scripted(reply(64, 9), reply(65, 9))
    sink = Sink(lambda event: scripted.engine.step())
    scripted.engine.add([1], sink, **RAW)
    run(scripted.engine)
    assert isinstance(sink.error, RuntimeError)
    assert "within a step" in str(sink.error)


def test_closing_from_within_a_step_takes_effect_with_its_end() -> None:
    scripted = Scripted(reply(64, 9))

    def close(event: Event) -> None:
        if isinstance(event, TokenEvent):
            scripted.engine.close()

    sink = Sink(close)
    scripted.engine.add([1], sink, **RAW)
    run(scripted.engine)
    assert isinstance(sink.error, ClosedError)
    assert ids_of(sink.events) == [64]
    assert [move for move, _ in scripted.model.states[0].moves][-1] == "close"
    with pytest.raises(ClosedError):
        scripted.engine.add([1], sink, **RAW)


def test_what_cannot_be_asked_is_refused_at_once() -> None:
    scripted = Scripted()
    with pytest.raises(MessageError, match="empty"):
        scripted.engine.add([], Sink())
    assert scripted.engine.finished


MODULES = (engine_module, idle, inbox, loop, prefix, sequence_module, session)


def test_an_interrupt_anywhere_in_streams_side_by_side() -> None:
    """A thousand places: whoever asks next is answered as if it had not come, and no more sessions
    stay than there are rows."""
    scripted = Scripted(window=4, chunk=2)
    scripted.model.rows = 2
    scripted.model.states = Living()
    points = everywhere(MODULES, lambda: _two(scripted))
    count = 0
    for count in points:  # noqa: B007
        scripted.replies[:] = [reply(70, 1)]
        assert scripted.engine.generate([9, 8, 7], **RAW).token_ids == (70, END)
        assert scripted.engine.finished
        assert len(_open(scripted)) <= 2
    assert count > 500


def test_an_interrupt_anywhere_in_the_store_leaves_only_right_nodes(tmp_path: Path) -> None:
    """Conversations that take each other's one row, with a store in memory and on the disk."""
    scripted = Scripted(window=4, chunk=8, cache=700, cache_dir=tmp_path)
    scripted.model.rows = 1
    scripted.model.states = Living()
    prompts = [[*range(9), *range(n, n + 5)] for n in (100, 200)]
    count = 0

    def talk() -> None:
        scripted.replies[:] = [reply(64, 1), reply(65, 1), reply(66, 1)]
        for prompt in prompts:
            list(scripted.engine.stream(prompt, **RAW))

    for count in everywhere((idle, prefix), talk, step=5):
        check(scripted.store)
        scripted.replies[:] = [reply(70, 1)]
        prompt = prompts[count % 2]
        assert scripted.engine.generate([*prompt, 7], **RAW).token_ids == (70, END)
        assert len(_open(scripted)) == 1
        assert scripted.held() == [*prompt, 7, 70, END]
    assert count > 500
    assert scripted.engine.notes == ()
    scripted.engine.close()
    assert not [t for t in threading.enumerate() if t.name == "prefix-store"]


class Living(list[RingState]):
    """The states that somebody holds."""

    def __init__(self) -> None:
        self._states = WeakSet[RingState]()

    def append(self, state: RingState) -> None:
        self._states.add(state)

    def __iter__(self) -> Iterator[RingState]:
        return iter(self._states)


def _two(scripted: Scripted) -> None:
    scripted.replies[:] = [reply(64, 1), reply(65, 0)]
    for _ in scripted.engine.stream_many([[1, 2, 3, 4], [6]], **RAW):
        pass


def _open(scripted: Scripted) -> list[RingState]:
    return [s for s in scripted.model.states if all(move != "close" for move, _ in s.moves)]


def test_nothing_is_left_when_all_have_left() -> None:
    scripted = Scripted(*[reply(64 + i, 3) for i in range(5)])
    sinks = [added(scripted, [i + 1])[1] for i in range(5)]
    run(scripted.engine)
    assert all(isinstance(sink.events[-1], FinishEvent) for sink in sinks)
    assert len(_open(scripted)) == 3  # as many as there are rows: prompts may go on from them


def test_a_sequence_that_comes_just_as_the_engine_closes_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After it was looked at and found open, before the sequence is queued."""
    scripted, sink = Scripted(reply(64, 5)), Sink()
    request = scripted.engine._request

    def closes(prompt: Any, options: Any) -> Any:
        found = request(prompt, options)
        scripted.engine.close()
        return found

    monkeypatch.setattr(scripted.engine, "_request", closes)
    scripted.engine.add([1], sink, **RAW)
    assert isinstance(sink.error, ClosedError)
