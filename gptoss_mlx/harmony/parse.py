"""The parser of generated tokens into Harmony messages, one token at a time.

It starts just after the prompt's `<|start|>assistant` and takes any tokens. It never raises,
recovers at the next `<|start|>`, and loses nothing: the texts of all pieces, concatenated, are the
decoded tokens. A header is held back until `<|message|>` settles it; text that turns out to have no
header becomes content.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, replace
from typing import Literal

from gptoss_mlx.harmony.encoding import (
    CALL,
    CHANNEL,
    END,
    ENDOFTEXT,
    MESSAGE,
    ORDINARY_TOKENS,
    RETURN,
    START,
    Encoding,
    special_text,
)
from gptoss_mlx.harmony.header import Header, header_length, is_cut_header, read_header

_ENDS = frozenset({END, RETURN, CALL, ENDOFTEXT})
_HELD_TEXTS = 32  # text tokens after which an incomplete header is examined
_MOST_HELD = 512  # the most tokens of a header; what is longer is no header
_GARBAGE_WORDS = 2  # up to this many stray words inside a header are garbage, more are an answer
_NEW_DECODER = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of the stream.

    kind "content": text of a message with this channel, recipient and type (None: not said).
    kind "header": text of headers and special tokens; it names the message it opens or closes.
    """

    text: str
    channel: str | None
    recipient: str | None
    content_type: str | None
    kind: Literal["content", "header"]


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """A message that has ended; `raw` is its text with header and special tokens.

    The raws of all messages concatenated are the stream (if there is any message).
    """

    channel: str | None
    recipient: str | None
    content_type: str | None
    text: str
    raw: str
    role: str = "assistant"


class Parser:
    """Feed it ids, take pieces; `messages` are those that have ended so far."""

    def __init__(self, encoding: Encoding) -> None:
        self.messages: list[ParsedMessage] = []
        self._bytes_of = encoding.token_bytes
        self._decoder = _NEW_DECODER("replace")
        self._open: Header | None = None
        self._text: list[str] = []
        self._raw: list[str] = []
        self._held: list[tuple[str, bool]] = []  # texts of a header and whether each is special
        self._held_texts = 0

    def feed(self, id: int) -> list[Piece]:
        """The pieces this token completes; none while a header or a character is incomplete."""
        if 0 <= id < ORDINARY_TOKENS:
            text = self._decoder.decode(self._bytes_of(id))
            return self._ordinary(text) if text else []
        pieces = self._flush()
        if id in _ENDS:
            return pieces + self._end(special_text(id))
        return pieces + self._special(id, special_text(id))

    def finish(self) -> list[Piece]:
        """The pieces still held when generation ends; an open message is closed."""
        pieces = self._flush()
        if self._open is None:
            pieces += self._resolve(cut=True)
        if self._open is not None:
            self._close()
        elif self._raw and self.messages:
            last = self.messages[-1]
            self.messages[-1] = replace(last, raw=last.raw + "".join(self._raw))
            self._raw = []
        return pieces

    def _flush(self) -> list[Piece]:
        """The bytes of an incomplete character, as U+FFFD."""
        text = self._decoder.decode(b"", True)
        return self._ordinary(text) if text else []

    def _ordinary(self, text: str) -> list[Piece]:
        if self._open is not None:
            return [self._content(self._open, text)]
        self._held.append((text, False))
        self._held_texts += 1
        full = len(self._held) >= _MOST_HELD
        if full or (self._held_texts >= _HELD_TEXTS and self._rest().strip()):
            return self._resolve()
        return []

    def _special(self, id: int, text: str) -> list[Piece]:
        if self._open is not None:
            if id != START and id != CHANNEL:
                return [self._header(self._open, text)]
            self._close()
            return self._hold(text)
        if id == MESSAGE:
            held = "".join([part for part, _ in self._held])
            self._open = read_header(held)
            self._held, self._held_texts = [], 0
            return [self._header(self._open, held + text)]
        pieces: list[Piece] = []
        if id == START or (id == CHANNEL and len(self._rest().split()) > _GARBAGE_WORDS):
            pieces = self._resolve()
            if self._open is not None:
                self._close()
        return pieces + self._hold(text)

    def _end(self, text: str) -> list[Piece]:
        pieces = [] if self._open is not None else self._resolve()
        if self._open is None:
            return [*pieces, self._header(Header(), text)]
        pieces.append(self._header(self._open, text))
        self._close()
        return pieces

    def _hold(self, text: str) -> list[Piece]:
        self._held.append((text, True))
        return self._resolve() if len(self._held) >= _MOST_HELD else []

    def _rest(self) -> str:
        """The part of the held text that is no header if no <|message|> follows."""
        held = "".join([part for part, _ in self._held])
        return held[header_length(held) :]

    def _resolve(self, cut: bool = False) -> list[Piece]:
        """Decide what held text without <|message|> is; opens a message if there is text for one.

        cut: the stream ended here, and the beginning of another header field is not content.
        """
        held = "".join([part for part, _ in self._held])
        length = header_length(held)
        rest = held[length:]
        if not rest.strip() or (cut and is_cut_header(rest)):
            length = len(held)
        header = read_header(held[:length])
        tokens, self._held, self._held_texts = self._held, [], 0
        if length == len(held):
            return [self._header(Header(), held)] if held else []
        self._open = header
        pieces = [self._header(header, held[:length])] if length else []
        start = 0
        for text, special in tokens:
            visible = text[max(length - start, 0) :]
            start += len(text)
            if visible:
                make = self._header if special else self._content
                pieces.append(make(header, visible))
        return pieces

    def _content(self, header: Header, text: str) -> Piece:
        self._raw.append(text)
        self._text.append(text)
        return Piece(text, header.channel, header.recipient, header.content_type, "content")

    def _header(self, header: Header, text: str) -> Piece:
        self._raw.append(text)
        return Piece(text, header.channel, header.recipient, header.content_type, "header")

    def _close(self) -> None:
        header = self._open or Header()
        self.messages.append(
            ParsedMessage(
                channel=header.channel,
                recipient=header.recipient,
                content_type=header.content_type,
                text="".join(self._text),
                raw="".join(self._raw),
                role=header.role,
            )
        )
        self._open, self._text, self._raw = None, [], []
