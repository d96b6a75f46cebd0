"""Detects an answer that repeats itself, as a model may do without end."""

from __future__ import annotations

PERIOD = 128  # tokens, at most
LENGTH = 2048  # tokens, which is at least sixteen times round
_BETWEEN = 256  # tokens between two checks, so that a check costs little


class Repetition:
    """Detects that the last LENGTH tokens repeat the same PERIOD or fewer.

    These are exactly the same tokens, sixteen times or more, over several pages. No wanted answer
    does that: a table, a list or code differs somewhere in every line.
    """

    def __init__(self) -> None:
        self._last: list[int] = []
        self._until_look = LENGTH

    def push(self, id: int) -> bool:
        self._last.append(id)
        self._until_look -= 1
        if self._until_look > 0:
            return False
        self._until_look = _BETWEEN
        last = self._last = self._last[-LENGTH:]
        return any(last[period:] == last[:-period] for period in range(1, PERIOD + 1))
