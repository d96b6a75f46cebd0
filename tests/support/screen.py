"""A small terminal: what a person sees after some text was written to it, and its scrollback."""

from __future__ import annotations

import re

from rich.cells import cell_len

_CONTROL = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x1b\].*?(?:\x07|\x1b\\)|\x1b[=>]")


class Screen:
    """columns, rows: its size. Lines that leave it at the top are kept in `scrolled`."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.columns, self.rows = columns, rows
        self.scrolled: list[str] = []
        self.lines: list[str] = [""]
        self.row = self.column = 0
        self.styled = False

    @property
    def text(self) -> list[str]:
        """All lines, without what is empty at the end."""
        lines = [line.rstrip() for line in (*self.scrolled, *self.lines)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def write(self, text: str) -> int:
        at = 0
        while at < len(text):
            found = _CONTROL.match(text, at)
            if found is not None:
                self._control(found)
                at = found.end()
                continue
            self._put(text[at])
            at += 1
        return len(text)

    def flush(self) -> None:
        """Everything is shown at once."""

    def _control(self, found: re.Match[str]) -> None:
        private, numbers, kind = found[1], found[2], found[3]
        if kind == "m":
            self.styled = numbers not in ("", "0")
        elif kind == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif kind == "J":
            assert numbers in ("", "0")
            self.lines[self.row] = self.lines[self.row][: self.column]
            del self.lines[self.row + 1 :]
        elif kind in "hl":
            assert (private, numbers) == ("?", "2026")
        else:
            assert kind is None, found[0]

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._next_line()
        else:
            assert character >= " ", repr(character)
            width = cell_len(character)
            if cell_len(self.lines[self.row][: self.column]) + width > self.columns:
                self._next_line()
            line = self.lines[self.row]
            self.lines[self.row] = (
                line[: self.column].ljust(self.column) + character + line[self.column + 1 :]
            )
            self.column += 1

    def _next_line(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.lines):
            self.lines.append("")
        if len(self.lines) > self.rows:
            self.scrolled.append(self.lines.pop(0))
            self.row -= 1
