"""The lines of a page's text while it is written: blanks collapsed, paragraphs apart, indented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class HtmlLines:
    """A text, written line by line."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._parts: list[str] = []  # of the line under way
        self._indent, self._mark = "", ""  # of all lines, and of the next one only
        self._items = 0
        self._apart = False  # whether an empty line goes before the next one

    @property
    def in_list(self) -> bool:
        return self._items > 0

    def text(self) -> str:
        """All of it, without empty lines at its ends."""
        self.end()
        return "\n".join(self._lines)

    def write(self, text: str) -> None:
        """Go on with the line. Blanks of any kind are one space."""
        self._parts.append(text)

    def end(self) -> None:
        """End the line, if there is anything on it."""
        line = " ".join("".join(self._parts).split())
        self._parts.clear()
        if line:
            self._add(line)

    def paragraph(self) -> None:
        """End the line, and have the next one begin after an empty line."""
        self.end()
        self._apart = True

    def block(self, lines: Sequence[str]) -> None:
        """Lines as they are, apart from what is around them."""
        self.paragraph()
        for line in lines:
            self._add(line)
        self.paragraph()

    @contextmanager
    def indented(self, indent: str) -> Iterator[None]:
        """Lines that begin with `indent`."""
        before = self._indent
        if indent:
            self.end()
        self._indent += indent
        yield
        if indent:
            self.end()
        self._indent = before

    @contextmanager
    def item(self, mark: str) -> Iterator[None]:
        """Lines of a list's item: its first one has a mark, the others are indented."""
        self.end()
        indent = self._indent
        self._mark = (self._mark or indent) + mark
        self._indent += "  "
        self._items += 1
        yield
        self.end()
        self._indent, self._mark = indent, ""
        self._items -= 1

    def _add(self, line: str) -> None:
        if self._apart and self._lines:
            self._lines.append("")
        self._apart = False
        self._lines.append((self._mark or self._indent) + line if line.strip() else line)
        self._mark = ""
