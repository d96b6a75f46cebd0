"""Passages: a text cut at headings and paragraphs into parts of a few hundred characters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LEAST = 400
MOST = 1200
"""Characters of a passage, but for a last one and one before a heading."""

_HEADING = re.compile(r"#{1,6} +(.+)|(.+)\n([=\-~^\"'*+#])\3{2,}(?=\n|$)")
_APART = re.compile(r"(?:^|\n)\s*(?:\n|$)")


@dataclass(frozen=True)
class Passage:
    """Characters of a text from `start` up to `end`, and the heading it stands under, or ""."""

    start: int
    end: int
    heading: str


def passages(text: str) -> list[Passage]:
    """The passages of a text, in order; together they have every character but blanks."""
    found: list[Passage] = []
    start = end = 0
    heading = ""
    for begin, after in _paragraphs(text):
        title = _HEADING.match(text, begin)
        if title is not None or (end - start >= LEAST and after - start > MOST):
            found += _pieces(text, start, end, heading)
            start = begin
        elif end == start:
            start = begin
        end = after
        if title is not None:
            heading = (title[1] or title[2]).strip()
    return found + _pieces(text, start, end, heading)


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Where each paragraph begins and ends."""
    begin = 0
    for apart in _APART.finditer(text):
        if apart.start() > begin:
            yield begin, apart.start()
        begin = apart.end()
    if len(text) > begin:
        yield begin, len(text)


def _pieces(text: str, start: int, end: int, heading: str) -> list[Passage]:
    """A part as passages of at most MOST characters, cut at a line's or a word's end."""
    pieces = []
    while end - start > MOST:
        cut = max(text.rfind("\n", start + LEAST, start + MOST), 0)
        cut = cut or max(text.rfind(" ", start + LEAST, start + MOST), 0) or start + MOST
        pieces.append(Passage(start, cut, heading))
        start = cut
    return [*pieces, Passage(start, end, heading)] if end > start else pieces
