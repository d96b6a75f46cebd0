"""The engine's thread: it answers callers of any thread, sleeps when there is nothing to do, and
says when it has died."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gptoss_mlx.engine.events import Event, FinishEvent, TokenEvent
from gptoss_mlx.engine.loop import Loop
from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.errors import ClosedError
from tests.support.scripted_model import Scripted, finish_of, ids_of

END = 199999
LONG = 60  # seconds that nothing here takes


class Waited:
    """An outlet that can be waited for. room: events it takes before it is full."""

    def __init__(self, room: int = 10**6) -> None:
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.room = room
        self.begun, self.ended = threading.Event(), threading.Event()

    def put(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, TokenEvent):
            self.begun.set()
        if isinstance(event, FinishEvent):
            self.ended.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.ended.set()

    def is_full(self) -> bool:
        return len(self.events) >= self.room

    def wait(self) -> list[int]:
        """The tokens of what has ended."""
        assert self.ended.wait(LONG)
        return ids_of(self.events)


class Steps:
    """The steps of a loop, counted; `block` holds the next one until it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.block: threading.Event | None = None
        self.blocked = threading.Event()
        step = Loop.step

        def counted(loop: Loop) -> None:
            self.count += 1
            if self.block is not None:
                self.blocked.set()
                assert self.block.wait(LONG)
            step(loop)

        monkeypatch.setattr(Loop, "step", counted)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest.fixture
def running() -> Iterator[Callable[..., tuple[Scripted, Runner]]]:
    runners: list[Runner] = []

    def start(*replies: list[int]) -> tuple[Scripted, Runner]:
        scripted = Scripted(*replies)
        runners.append(Runner(scripted.engine))
        return scripted, runners[-1]

    yield start
    for runner in runners:
        runner.close()
        assert not runner.is_alive


Start = Callable[..., tuple[Scripted, Runner]]


def reply(id: int, length: int = 5) -> list[int]:
    return [id] * length + [END]


def add(runner: Runner, prompt: list[int], room: int = 10**6, **options: Any) -> Waited:
    outlet = Waited(room)
    runner.add(prompt, outlet, raw=True, **options)
    return outlet


def test_it_answers_callers_of_many_threads(running: Start) -> None:
    count = 12
    _, runner = running(*[reply(64)] * count)
    outlets: list[Waited] = []
    callers = [
        threading.Thread(target=lambda i=i: outlets.append(add(runner, [i + 1])))  # type: ignore[misc]
        for i in range(count)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(LONG)
    assert [outlet.wait() for outlet in outlets] == [reply(64)] * count
    assert runner.is_alive
    assert runner.error is None


def test_it_takes_no_step_when_there_is_nothing_to_do(running: Start, steps: Steps) -> None:
    _, runner = running(reply(64), reply(65))
    add(runner, [1]).wait()
    first = steps.count
    assert first <= 8
    runner.wake()
    add(runner, [2]).wait()
    assert steps.count - first <= 8
    assert runner.step_seconds < LONG


def test_it_sleeps_while_every_reader_is_behind(running: Start, steps: Steps) -> None:
    """What a reader does not take is not computed, and the other goes on."""
    _, runner = running(reply(64, 30), reply(65))
    slow = add(runner, [1], room=3)
    assert slow.begun.wait(LONG)
    assert add(runner, [2]).wait() == reply(65)
    taken = steps.count
    assert taken < 20
    assert not slow.ended.is_set()
    slow.room = 10**6
    runner.wake()
    assert slow.wait() == reply(64, 30)
    assert steps.count > taken + 20


def test_what_fails_alone_does_not_end_it(running: Start) -> None:
    scripted, runner = running(reply(64), reply(65))
    scripted.fail("read", 0, RuntimeError("this one"))
    failed = add(runner, [1])
    failed.wait()
    assert str(failed.error) == "this one"
    assert add(runner, [2]).wait() == reply(65)
    assert runner.is_alive


def test_a_loop_that_dies_says_so_and_fails_everybody(
    running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, runner = running(reply(64, 100), reply(65))
    first = add(runner, [1], room=3)
    assert first.begun.wait(LONG)

    def fail(*_: Any) -> None:
        raise MemoryError("no memory for the list")

    monkeypatch.setattr(Loop, "_retire", fail)
    second = add(runner, [2])
    for outlet in (first, second):
        assert outlet.ended.wait(LONG)
        assert isinstance(outlet.error, ClosedError)
    runner._thread.join(LONG)
    assert not runner.is_alive
    assert isinstance(runner.error, MemoryError)
    with pytest.raises(ClosedError, match="the engine has ended: no memory for the list"):
        add(runner, [3])


def test_a_step_that_hangs_is_seen(running: Start, steps: Steps) -> None:
    steps.block = threading.Event()
    _, runner = running(reply(64))
    outlet = add(runner, [1])
    assert steps.blocked.wait(LONG)
    assert runner.step_seconds > 0
    assert runner.is_alive
    block, steps.block = steps.block, None
    block.set()
    assert outlet.wait() == reply(64)


def test_what_runs_may_end_before_it_closes_and_nothing_new_is_taken(
    running: Start, steps: Steps
) -> None:
    steps.block = threading.Event()
    _, runner = running(reply(64, 50))
    outlet = add(runner, [1])
    assert steps.blocked.wait(LONG)
    closing = threading.Thread(target=runner.close, args=(LONG,))
    closing.start()
    while not runner._closing:
        pass
    with pytest.raises(ClosedError, match="about to close"):
        add(runner, [2])
    block, steps.block = steps.block, None
    block.set()
    closing.join(LONG)
    assert outlet.wait() == reply(64, 50)
    assert finish_of(outlet.events).reason == "stop"
    assert runner.error is None


def test_what_has_not_ended_in_time_fails(running: Start) -> None:
    _, runner = running(reply(64, 100))
    behind = add(runner, [1], room=3)
    assert behind.begun.wait(LONG)
    runner.close(grace=0.01)
    assert isinstance(behind.error, ClosedError)


def test_no_caller_waits_for_ever_where_it_closes_meanwhile(running: Start) -> None:
    """Each of many prompts is answered, failed or refused."""
    for _ in range(20):
        _, runner = running(*[reply(64)] * 40)
        outlets: list[Waited] = []
        go = threading.Barrier(3)

        def call(
            runner: Runner = runner,
            go: threading.Barrier = go,
            outlets: list[Waited] = outlets,
        ) -> None:
            go.wait(LONG)
            try:
                for _ in range(20):
                    outlets.append(add(runner, [1]))
            except ClosedError:
                pass

        callers = [threading.Thread(target=call) for _ in range(2)]
        for caller in callers:
            caller.start()
        go.wait(LONG)
        runner.close()
        for caller in callers:
            caller.join(LONG)
        for outlet in outlets:
            assert outlet.ended.wait(LONG)
