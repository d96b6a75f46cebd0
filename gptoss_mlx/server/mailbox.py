"""A mailbox: events of the sequences of one request, from the engine's thread to a coroutine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from gptoss_mlx.engine.events import Event

ROOM = 4096
"""Events that may be unread before the sequences rest (backpressure)."""


class Mailbox:
    """A queue of events with a slot, which is an engine's outlet, for each of several sequences.

    It is made and read in an event loop. wake: called when it was full and no longer is.
    """

    def __init__(self, sequences: int, wake: Callable[[], None]) -> None:
        self.slots = [Slot(i, self) for i in range(sequences)]
        self._unread: deque[tuple[int, Event]] = deque()
        self._error: BaseException | None = None
        self._loop, self._arrived = asyncio.get_running_loop(), asyncio.Event()
        self._wake = wake

    async def take(self) -> list[tuple[int, Event]]:
        """Wait until there are events, and take them all, each with the number of its sequence.

        Raises the error of a sequence that failed, after what came before it has been taken.
        """
        await self._arrived.wait()
        self._arrived.clear()
        full = self.is_full()
        taken = [self._unread.popleft() for _ in range(len(self._unread))]
        if full:
            self._wake()
        if self._error is not None:
            if not taken:
                raise self._error
            self._arrived.set()
        return taken

    def put(self, number: int, event: Event) -> None:
        """Called on the engine's thread, as `fail` and `is_full` are."""
        self._unread.append((number, event))
        self._signal()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._signal()

    def is_full(self) -> bool:
        return len(self._unread) >= ROOM

    def _signal(self) -> None:
        with suppress(RuntimeError):  # the event loop has closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._arrived.set)


class Slot:
    """The outlet of one sequence."""

    def __init__(self, number: int, mailbox: Mailbox) -> None:
        self._number, self._mailbox = number, mailbox

    def put(self, event: Event) -> None:
        self._mailbox.put(self._number, event)

    def fail(self, error: BaseException) -> None:
        self._mailbox.fail(error)

    def is_full(self) -> bool:
        return self._mailbox.is_full()
