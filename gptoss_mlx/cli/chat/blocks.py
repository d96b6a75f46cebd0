"""Markdown in blocks, as its lines come: what is finished is told from what may still change.

Where a block ends depends on whole lines alone, so the blocks are the same however the text is cut
into pieces. The lines of all blocks, joined, are the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

CONTEXT = 200
"""Lines of code before a line, by which it is coloured."""

_FENCE = re.compile(r" {0,3}(?P<mark>`{3,}(?=[^`]*$)|~{3,})\s*(?P<language>[^\s`]*)")
_HEADING = re.compile(r" {0,3}#{1,6}([ \t]|$)")
_RULE = re.compile(r" {0,3}([-_*])[ \t]*(\1[ \t]*){2,}$")
_ITEM = re.compile(r"(?P<mark>(?P<indent> {0,3})([-+*]|(?P<number>\d{1,9})[.)]))(?P<gap> +|$)")

Kind = Literal["text", "code", "fence", "blank"]


@dataclass(frozen=True)
class MarkdownBlock:
    """Lines that are shown together.

    kind: "text" for Markdown, "fence" for the line that begins or ends code, "code" for one line of
    it, "blank" for an empty line. language, before: of a line of code, and the lines before it.
    """

    kind: Kind
    lines: tuple[str, ...]
    language: str = ""
    before: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Blocks:
    """Takes a text in pieces; gives out blocks that are finished."""

    def __init__(self) -> None:
        self._line = ""  # the one that has no end yet
        self._open: list[str] = []  # lines of text
        self._indent: int | None = None  # of what belongs to the list item that is open
        self._fence: str | None = None  # the marks of code that is open
        self._language = ""
        self._code: tuple[str, ...] = ()

    def push(self, text: str) -> list[MarkdownBlock]:
        """Take a piece; the blocks that it finishes come back."""
        *lines, self._line = (self._line + text).split("\n")
        return [block for line in lines for block in self._take(line)]

    @property
    def open(self) -> MarkdownBlock | None:
        """What is not finished, with the line that has no end yet."""
        if self._fence is not None:
            return self._code_line(self._line) if self._line else None
        lines = [*self._open, self._line] if self._line else self._open
        return MarkdownBlock("text", tuple(lines)) if lines else None

    def close(self) -> list[MarkdownBlock]:
        """The rest, at the end of the text."""
        last, self._line = self._line, ""
        blocks = self._take(last) if last else []
        blocks += self._finish()
        self._fence = None
        return blocks

    def _take(self, line: str) -> list[MarkdownBlock]:
        """Take a whole line."""
        if self._fence is not None:
            return [self._take_code(line)]
        blank = not line.strip()
        if blank and self._indent is None:
            return [*self._finish(), MarkdownBlock("blank", (line,))]
        done = self._finish() if self._interrupts(line) else []
        if not blank and not self._open and (fence := _FENCE.match(line)):
            self._fence, self._language, self._code = fence["mark"], fence["language"], ()
            return [*done, MarkdownBlock("fence", (line,))]
        if not self._open:
            item = None if _RULE.match(line) else _ITEM.match(line)
            self._indent = None if item is None else _content_column(item)
        self._open.append(line)
        if self._indent is None and (_HEADING.match(line) or self._is_rule(line)):
            done += self._finish()
        return done

    def _interrupts(self, line: str) -> bool:
        """Whether a line begins a block of its own, though others are open."""
        if not self._open or not line.strip():
            return False
        column = len(line) - len(line.lstrip(" "))
        if self._indent is not None and column >= self._indent:
            return False
        if _FENCE.match(line) or _HEADING.match(line):
            return True
        item = _ITEM.match(line)
        if self._indent is not None:
            after_blank = not self._open[-1].strip()
            return after_blank or item is not None or _RULE.match(line) is not None
        # As in CommonMark, only an item that is not empty, and of the number 1, ends a paragraph.
        return (
            item is not None and item["gap"] != "" and item["number"] in (None, "1", "01")
        ) and not _RULE.match(line)

    def _is_rule(self, line: str) -> bool:
        """Whether the line is a rule, rather than the underline of a heading."""
        return len(self._open) == 1 and _RULE.match(line) is not None

    def _take_code(self, line: str) -> MarkdownBlock:
        assert self._fence is not None
        stripped = line.strip()
        if line[:4].strip() and stripped == stripped[:1] * len(stripped):  # noqa: SIM102
            if stripped.startswith(self._fence):
                self._fence = None
                return MarkdownBlock("fence", (line,))
        block = self._code_line(line)
        self._code = (*self._code, line)[-CONTEXT:]
        return block

    def _code_line(self, line: str) -> MarkdownBlock:
        return MarkdownBlock("code", (line,), self._language, self._code)

    def _finish(self) -> list[MarkdownBlock]:
        """The block of text that is open; the blank lines at its end stand for themselves."""
        lines, self._open, self._indent = self._open, [], None
        count = len(lines)
        while count and not lines[count - 1].strip():
            count -= 1
        text = [MarkdownBlock("text", tuple(lines[:count]))] if count else []
        return text + [MarkdownBlock("blank", (line,)) for line in lines[count:]]


def _content_column(item: re.Match[str]) -> int:
    """Where the text of a list item begins, to which its further lines are indented."""
    gap = len(item["gap"])
    return len(item["mark"]) + (gap if 1 <= gap <= 4 else 1)
