"""Turns generated ids into text events: Harmony's messages or plain text, cut at stop strings."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.harmony import Parser, Piece


class Source(Protocol):
    """A source of text pieces, fed token by token."""

    def feed(self, id: int) -> list[Piece]: ...
    def finish(self) -> list[Piece]: ...


class TextDecoder(Protocol):
    def push(self, id: int) -> str: ...
    def flush(self) -> str: ...


class PlainText:
    """The pieces of a raw stream, without Harmony: all of it is content."""

    def __init__(self, decoder: TextDecoder, stop_ids: frozenset[int]) -> None:
        self._decoder, self._stop_ids = decoder, stop_ids

    def feed(self, id: int) -> list[Piece]:
        return [] if id in self._stop_ids else _plain(self._decoder.push(id))

    def finish(self) -> list[Piece]:
        return _plain(self._decoder.flush())


def _plain(text: str) -> list[Piece]:
    return [Piece(text, None, None, None, "content")] if text else []


class StopString:
    """Finds a string in a growing text (Knuth, Morris and Pratt), one step a character.

    begun: length of its longest prefix that the text ends with.
    """

    def __init__(self, string: str) -> None:
        self.string, self.begun = string, 0
        self._border = [0]  # longest border of its first 1, 2, ... characters
        for letter in string[1:]:
            self._border.append(self._next(self._border[-1], letter))

    def push(self, letter: str) -> bool:
        """Whether this character completes the string."""
        self.begun = self._next(self.begun, letter)
        return self.begun == len(self.string)

    def _next(self, begun: int, letter: str) -> int:
        while begun and (begun == len(self.string) or self.string[begun] != letter):
            begun = self._border[begun - 1]
        return begun + (self.string[begun] == letter)


class Writer:
    """Turns ids into `TokenEvent`s.

    `stopped_by` is a stop string once it is complete in text for the user, which reasoning and the
    arguments of a tool call are not. The stop string and all text after it are dropped; text that
    may be the beginning of one is held back until that is decided. Of several stop strings the one
    complete first counts, and the longest of those.
    """

    def __init__(self, source: Source, stop: Sequence[str] = ()) -> None:
        self.source = source
        self.stopped_by: str | None = None
        self._stops = [StopString(string) for string in stop]
        self._held: deque[str] = deque()
        self._held_length = 0
        self._last: Piece | None = None

    @property
    def stopped(self) -> bool:
        return self.stopped_by is not None

    @property
    def called(self) -> bool:
        """Whether a message to a tool has ended."""
        messages = self.source.messages if isinstance(self.source, Parser) else []
        return any(message.recipient is not None for message in messages)

    @property
    def reasoned(self) -> bool:
        """Whether the next user's turn is rendered without a part of this: reasoning is dropped
        then, but kept while a tool is called."""
        messages = self.source.messages if isinstance(self.source, Parser) else []
        return not self.called and any(message.channel == "analysis" for message in messages)

    def push(
        self, id: int, logprob: float | None, top: tuple[tuple[int, float], ...]
    ) -> Iterator[TokenEvent]:
        """The events of one token: at least one, the first carries the id."""
        pieces = self._cut(self.source.feed(id))
        first = next(pieces, Piece("", None, None, None, "content"))
        yield _event(first, id, logprob, top)
        for piece in pieces:
            yield _event(piece)

    def finish(self) -> Iterator[TokenEvent]:
        """The events of the text still held back, at the end of the stream."""
        if not self.stopped:
            for piece in self._cut(self.source.finish()):
                yield _event(piece)
        if self._last is not None and (text := self._release(self._held_length)):
            yield _event(_with_text(self._last, text))

    def _cut(self, pieces: list[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if self.stopped:
                return
            if not (self._stops and _is_for_user(piece)):
                if self._last is not None and (text := self._release(self._held_length)):
                    yield _with_text(self._last, text)
                    for stop in self._stops:
                        stop.begun = 0
                yield piece
                continue
            self._last = piece
            if text := self._until_stop(piece.text):
                yield _with_text(piece, text)

    def _until_stop(self, text: str) -> str:
        """Take in `text`, and return what can be shown; hold the rest back, or drop it at a
        stop."""
        for at, letter in enumerate(text):
            done = [stop.string for stop in self._stops if stop.push(letter)]
            if done:
                self.stopped_by = max(done, key=len)
                shown = self._held_length + at + 1 - len(self.stopped_by)
                self._hold(text)
                before = self._release(shown)
                self._held.clear()
                self._held_length = 0
                return before
        self._hold(text)
        return self._release(self._held_length - max(stop.begun for stop in self._stops))

    def _hold(self, text: str) -> None:
        self._held.append(text)
        self._held_length += len(text)

    def _release(self, length: int) -> str:
        """Remove the first `length` characters that are held back, and return them."""
        self._held_length -= length
        released = []
        while length > 0:
            text = self._held.popleft()
            released.append(text[:length])
            if len(text) > length:
                self._held.appendleft(text[length:])
            length -= len(text)
        return "".join(released)


def _is_for_user(piece: Piece) -> bool:
    return piece.kind == "content" and piece.channel != "analysis" and piece.recipient is None


def _with_text(piece: Piece, text: str) -> Piece:
    return Piece(text, piece.channel, piece.recipient, piece.content_type, piece.kind)


def _event(
    piece: Piece,
    id: int | None = None,
    logprob: float | None = None,
    top: tuple[tuple[int, float], ...] = (),
) -> TokenEvent:
    is_header = piece.kind == "header"
    return TokenEvent(
        id,
        "" if is_header else piece.text,
        piece.channel,
        piece.recipient,
        piece.content_type,
        piece.kind,
        logprob if logprob is not None and math.isfinite(logprob) else None,
        tuple((other, value) for other, value in top if math.isfinite(value)),
        piece.text if is_header else "",
    )
