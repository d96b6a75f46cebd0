"""A thread pool for one caller, which an interrupt may stop at any instruction.

`concurrent.futures` is not made for that: an interrupt inside its Python-level locks leaves them
held, one inside `shutdown` leaves a pool that accepts no more work, and cancelled futures count as
done for some of its functions only. Here only C-level queues and plain attributes are shared, every
attribute has one writer, and the state after an interrupt is read from what the threads themselves
have written.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import TypeAlias

Call: TypeAlias = Callable[[], None]


class _Task:
    """A call for a thread. The caller writes `wanted`, the thread the rest."""

    __slots__ = ("call", "ended", "error", "news", "started", "wanted")

    def __init__(self, call: Call, news: SimpleQueue[None]) -> None:
        self.call: Call | None = call
        self.news = news
        self.wanted, self.started, self.ended = True, False, False
        self.error: BaseException | None = None

    def run(self) -> None:
        # `started` is written before `wanted` is read: a caller that has cleared `wanted` and finds
        # `started` unset knows that the call is never made.
        self.started = True
        if self.wanted and self.call is not None:
            self.error = _failure(self.call)
        else:
            self.error = Stopped("it was stopped before it began")
        self.call = None  # frees the memory it writes to
        self.ended = True
        self.news.put(None)


class Stopped(RuntimeError):
    """The error of a task that was called off before it began."""


class Tasks:
    """A group of calls that threads make, in no order."""

    def __init__(self, calls: Iterable[Call]) -> None:
        # One item for every task that has ended. An interrupt may lose an item without harm,
        # because every wait looks at the tasks themselves first.
        self._news: SimpleQueue[None] = SimpleQueue()
        self.tasks = [_Task(call, self._news) for call in calls]
        self._over = 0  # how many of the first tasks have ended
        self._called_off = self._abandoned = False

    def over(self) -> bool:
        """Whether all have ended."""
        while self._over < len(self.tasks) and self.tasks[self._over].ended:
            self._over += 1
        return self._over == len(self.tasks)

    def idle(self) -> bool:
        """Whether no call runs or will be made. Tasks that were called off in the queue end only
        when a thread comes to them, long after `abandon` knows that they are never made."""
        return self._abandoned or self.over()

    def wait(self) -> None:
        """Wait until all have ended, then raise the first error among them."""
        while not self.over():
            self._news.get()
        for task in self.tasks:
            if task.error is not None:
                raise task.error

    def succeeded(self) -> bool:
        """Whether all have ended without an error."""
        return all(task.ended and task.error is None for task in self.tasks)

    def failed(self) -> bool:
        """Whether a task has failed so far or, after `call_off`, has not succeeded."""
        if self._called_off:
            return not self.succeeded()
        return any(task.error is not None for task in self.tasks)

    def call_off(self) -> None:
        """Start no further calls."""
        self._called_off = True
        for task in self.tasks:
            task.wanted = False

    def abandon(self) -> bool:
        """Start no further calls and wait for those running; True if all had succeeded after
        all."""
        self.call_off()
        for task in self.tasks:
            while task.started and not task.ended:
                self._news.get()
        self._abandoned = True
        return self.succeeded()


class Pool:
    """A pool of threads. They end when it is collected, at the latest when the process ends."""

    def __init__(self, threads: int, name: str) -> None:
        self._line = _Line()
        self._begun: list[Tasks] = []
        workers = [
            threading.Thread(target=_work, args=(self._line,), name=f"{name}-{i}", daemon=True)
            for i in range(threads)
        ]
        self._dismiss = weakref.finalize(self, _dismiss, self._line, workers)
        for worker in workers:
            worker.start()

    def start(self, calls: Iterable[Call]) -> Tasks:
        """Queue calls. If an interrupt comes before this returns, `stop` still knows of them."""
        tasks = Tasks(calls)
        self._begun = [*(earlier for earlier in self._begun if not earlier.over()), tasks]
        for task in tasks.tasks:
            self._line.queue.put(task)
        return tasks

    def stop(self) -> None:
        """Call off queued calls, and return when none runs. The pool takes new calls afterwards."""
        for tasks in self._begun:
            tasks.call_off()
        for tasks in self._begun:
            tasks.abandon()
        self._begun = []

    def close(self) -> None:
        """Call off queued calls, and return when the threads have ended."""
        self._line.closed = True
        self._line.queue.put(None)
        self.stop()
        self._dismiss()


class _Line:
    """The queue of a pool's threads. They do not refer to the pool, so that it can be collected."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[_Task | None] = SimpleQueue()
        self.closed = False


def _work(line: _Line) -> None:
    while (task := line.queue.get()) is not None:
        if line.closed:
            task.wanted = False
        task.run()
        del task  # or it is held until the next one comes
    line.queue.put(None)  # for the next thread


def _dismiss(line: _Line, workers: Sequence[threading.Thread]) -> None:
    line.closed = True
    line.queue.put(None)
    for worker in workers:
        if worker.ident is not None:  # or it was never started
            worker.join()


def _failure(call: Call) -> BaseException | None:
    """The exception that a call raises, or None.

    It is a function of its own, because a traceback keeps its frame alive: the frame of `_Task.run`
    would keep the task, and with it the error itself.
    """
    try:
        call()
    except BaseException as error:  # whatever it is, it is raised where it is waited for
        return error
    return None
