"""What a server writes, in bounded memory: lines of messages, and the last words of stderr."""

from __future__ import annotations

from collections.abc import Iterator

from gptoss_mlx.tools.browser.plain import one_line

MESSAGE_LIMIT = 16 << 20
"""Bytes of a message; a longer one is not read."""

_KEPT = 4096  # bytes of last words
_TOLD_LINES, _TOLD_LETTERS = 3, 300


class LineSplitter:
    """Splits a stream of bytes into lines of at most `limit` bytes."""

    def __init__(self, limit: int = MESSAGE_LIMIT) -> None:
        self._limit, self._open, self._skips = limit, bytearray(), False

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """The lines that end in the data; None for each that becomes too long, which is dropped."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            yield from self._add(piece)
            if not self._skips:
                yield bytes(self._open)
            self._open.clear()
            self._skips = False
        yield from self._add(rest)

    def _add(self, piece: bytes) -> Iterator[None]:
        if self._skips:
            return
        self._open += piece
        if len(self._open) > self._limit:
            self._open, self._skips = bytearray(), True
            yield None


class LastWords:
    """The end of what a server said outside its messages."""

    def __init__(self) -> None:
        self._kept = b""

    def add(self, data: bytes) -> None:
        self._kept = (self._kept + data[-_KEPT:])[-_KEPT:]

    def __str__(self) -> str:
        """The last lines, in one; empty if there are none."""
        lines = self._kept.decode("utf-8", "replace").splitlines()
        told = [line.strip() for line in lines if line.strip()][-_TOLD_LINES:]
        return one_line(" | ".join(told), _TOLD_LETTERS)
