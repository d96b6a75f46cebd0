"""Generated ids to text events: Harmony's messages or plain text, cut at stop strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from gptoss_mlx.events import TokenEvent
from gptoss_mlx.harmony import Parser, Piece


class Source(Protocol):
    """Where text pieces come from, token by token."""

    def feed(self, id: int) -> list[Piece]: ...
    def finish(self) -> list[Piece]: ...


class TextDecoder(Protocol):
    def push(self, id: int) -> str: ...
    def flush(self) -> str: ...


class PlainText:
    """The pieces of a stream that is no Harmony: content, all of it."""

    def __init__(self, decoder: TextDecoder, stop_ids: frozenset[int]) -> None:
        self._decoder, self._stop_ids = decoder, stop_ids

    def feed(self, id: int) -> list[Piece]:
        return [] if id in self._stop_ids else _plain(self._decoder.push(id))

    def finish(self) -> list[Piece]:
        return _plain(self._decoder.flush())


def _plain(text: str) -> list[Piece]:
    return [Piece(text, None, None, None, "content")] if text else []


class Writer:
    """Turns ids into `TokenEvent`s.

    `stopped` is set once a stop string is complete in text meant for the user, which reasoning and
    the arguments of a tool call are not. Text from there on is dropped, and text that may be the
    beginning of one is held back until it is decided. Of several, the one complete first counts.
    """

    def __init__(self, source: Source, stop: Sequence[str] = ()) -> None:
        self.source = source
        self.stop = tuple(stop)
        self.stopped = False
        self._held = ""
        self._last: Piece | None = None

    @property
    def called(self) -> bool:
        """Whether a message to a tool has ended."""
        messages = self.source.messages if isinstance(self.source, Parser) else []
        return any(message.recipient is not None for message in messages)

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
        """What was held back, when nothing follows."""
        if not self.stopped:
            for piece in self._cut(self.source.finish()):
                yield _event(piece)
        if self._held and self._last is not None:
            yield _event(_with_text(self._last, self._held))
            self._held = ""

    def _cut(self, pieces: list[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if self.stopped:
                return
            if not (self.stop and _is_for_user(piece)):
                if self._held and self._last is not None:
                    yield _with_text(self._last, self._held)
                    self._held = ""
                yield piece
                continue
            self._last = piece
            text = self._until_stop(self._held + piece.text)
            if text:
                yield _with_text(piece, text)

    def _until_stop(self, text: str) -> str:
        """The part of `text` that may be shown; the rest is held, or dropped after a stop."""
        found = min(
            ((at + len(s), at) for s in self.stop if (at := text.find(s)) >= 0), default=None
        )
        if found is not None:
            self.stopped, self._held = True, ""
            return text[: found[1]]
        keep = max(
            (n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


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
    return TokenEvent(
        id,
        piece.text,
        piece.channel,
        piece.recipient,
        piece.content_type,
        piece.kind,
        logprob,
        top,
    )
