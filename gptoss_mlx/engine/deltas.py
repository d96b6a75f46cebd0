"""Deltas: the pieces of an answer as its reader sees them, without Harmony's markup.

A call begins with the header that names its recipient, or where that is malformed with its first
content. Every other message begins with its first text, so that an empty one gives nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.spec.recipients import FUNCTIONS

Part: TypeAlias = Literal["reasoning", "preamble", "answer", "call"]

_SPECIAL = re.compile(r"<\|\w+\|>")
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|endoftext|>")
_PARTS: Mapping[str | None, Part] = {"analysis": "reasoning", "commentary": "preamble"}


@dataclass(frozen=True)
class Delta:
    """A piece of a message's text.

    part: what the message is; a preamble is what the model tells the user before it calls a tool,
    all of a raw stream is answer. message: its number, from 0. recipient: of a call, else "".
    text: of a call, a piece of its arguments; "" where a call begins. tokens: those that the text
    is made of, as far as no delta before had them.
    """

    part: Part
    message: int
    recipient: str
    text: str
    tokens: tuple[TokenEvent, ...]

    @property
    def name(self) -> str:
        """The function of a call."""
        return self.recipient.removeprefix(FUNCTIONS)


class Splitter:
    """Takes the token events of one stream in order, and gives its deltas."""

    def __init__(self) -> None:
        self._messages = 0
        self._open: tuple[Part, str] | None = None  # part and recipient of the message under way
        self._held: list[TokenEvent] = []  # of text that is incomplete so far

    def push(self, token: TokenEvent) -> Delta | None:
        """The delta of a token; None for markup, and while a character is incomplete."""
        header = token.kind == "header"
        if header and not _is_stray(token):
            self._open = None
            self._held.clear()
        elif not header and token.id is not None:
            self._held.append(token)
        begins = header and _opens(token) and token.recipient is not None
        if not (begins or (token.text and not header)):
            return None
        if token.recipient is None:
            message = _PARTS.get(token.channel, "answer"), ""
        else:
            message = "call", token.recipient
        if message != self._open:
            self._open = message
            self._messages += 1
        elif header:  # stray: the call has begun
            return None
        part, recipient = message
        tokens = tuple(self._held)
        self._held.clear()
        return Delta(part, self._messages - 1, recipient, token.text, tokens)


def _is_stray(token: TokenEvent) -> bool:
    """Whether this is a special token inside a message, where the model should write none."""
    return _SPECIAL.fullmatch(token.markup) is not None and token.markup not in _ENDS


def _opens(header: TokenEvent) -> bool:
    return header.markup.endswith("<|message|>")
