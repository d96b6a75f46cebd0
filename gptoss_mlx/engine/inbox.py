"""Events of the sequences that one caller reads, in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from gptoss_mlx.engine.events import Event, FinishEvent


class Inbox:
    """A queue of events with an outlet for each of several sequences.

    Backpressure: while an event is unread every outlet is full, and none of the sequences computes.
    """

    def __init__(self, sequences: int) -> None:
        self.outlets = [_Numbered(i, self) for i in range(sequences)]
        self.unread: deque[tuple[int, Event]] = deque()
        self.error: BaseException | None = None
        self.unfinished = sequences

    def take(self) -> Iterator[tuple[int, Event]]:
        """Yields the unread events, each with the index of its sequence; then raises the error of a
        sequence that failed, if one did."""
        while self.unread:
            yield self.unread.popleft()
        if self.error is not None:
            raise self.error


class _Numbered:
    """The outlet of one sequence."""

    def __init__(self, number: int, inbox: Inbox) -> None:
        self._number, self._inbox = number, inbox

    def put(self, event: Event) -> None:
        self._inbox.unread.append((self._number, event))
        self._inbox.unfinished -= isinstance(event, FinishEvent)

    def fail(self, error: BaseException) -> None:
        self._inbox.error = error

    def is_full(self) -> bool:
        return bool(self._inbox.unread)
