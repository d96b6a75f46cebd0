"""The region: lines at the bottom of a terminal that are still being written, drawn in place.

Finished lines go into the scrollback once and are never drawn again. An update is one write, of
those lines only that have changed; the cursor stays visible and no style stays on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.cells import cell_len

_STYLE = re.compile(r"\x1b\[[\d;]*m")
_ERASE_BELOW = "\x1b[J"
# Terminals that know this show the update at once; others ignore it.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"


class Region:
    """size: gives columns and rows as they are now. It begins empty, on an empty line."""

    def __init__(self, stream: TextIO, size: Callable[[], tuple[int, int]]) -> None:
        self._stream, self._size = stream, size
        self._shown: list[str] = [""]  # the cursor is at the end of the last
        self._columns = size()[0]
        # xterm cuts lines where a window becomes narrower; other terminals break them.
        self._breaks = "XTERM_VERSION" not in os.environ

    def update(self, finished: Sequence[str], open: Sequence[str]) -> None:
        """Write finished lines above, and the open ones, of which the last fit the terminal, in
        the place of those drawn before."""
        columns, rows = self._size()
        lines = [*finished, *(open[-max(1, rows - 1) :] or [""])]
        same = self._unchanged(lines) if columns == self._columns else 0
        if same < max(len(lines), len(self._shown)):
            same = min(same, len(lines) - 1)  # the cursor belongs at the end of the last
            text = self._go_to(same, columns, rows) + "\n".join(lines[same:])
            self._stream.write(f"{_BEGIN}{text}{_END}")
            self._stream.flush()
        self._shown = lines[len(finished) :]
        self._columns = columns

    def _unchanged(self, lines: Sequence[str]) -> int:
        """How many lines at the beginning are as they are shown."""
        pairs = zip(self._shown, lines, strict=False)
        return next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(self._shown), len(lines))
        )

    def _go_to(self, line: int, columns: int, rows: int) -> str:
        """Go from the end of what is shown to the beginning of a line, and erase from there."""
        if line == len(self._shown):
            return "\n"
        taken = [self._rows_of(text, columns) for text in self._shown[line:]]
        up = min(sum(taken) - 1, rows - 1)
        return ("\r" + (f"\x1b[{up}A" if up else "")) + _ERASE_BELOW

    def _rows_of(self, text: str, columns: int) -> int:
        if columns >= self._columns or not self._breaks:
            return 1
        return max(1, -(-cell_len(_STYLE.sub("", text)) // (columns + 1)))
