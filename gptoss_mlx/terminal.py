"""Text and progress on a terminal, or through a pipe.

The terminal is clean at every moment: a style is ended by the write that begins it, and only a
progress bar, while it runs, hides the cursor.
"""

from __future__ import annotations

import io
import os
from threading import Lock, Timer
from typing import TYPE_CHECKING, Literal, TextIO

from gptoss_mlx.events import TokenEvent

if TYPE_CHECKING:
    from rich.progress import Progress

_DIM, _NOT_DIM = "\x1b[2m", "\x1b[22m"
# A model's text must not move the cursor or set the title: C0 and C1 controls, but not \t and \n.
_CONTROLS = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"
}


def harmless(text: str) -> str:
    """The text with U+FFFD for everything that would steer a terminal."""
    return text.translate(_CONTROLS)


class Pen:
    """Writes text to a stream at once. None, a stream that was closed before, takes everything."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.terminal = stream is not None and stream.isatty()
        self.styled = (
            self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        self._line_is_open = False
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    def write(self, text: str, *, dim: bool = False) -> None:
        if self._stream is None or not text:
            return
        self._line_is_open = not text.endswith("\n")
        if self.terminal:
            text = harmless(text)
        self._stream.write(f"{_DIM}{text}{_NOT_DIM}" if dim and self.styled else text)
        self._stream.flush()

    def end_line(self) -> None:
        """Go to the beginning of a line, if not there."""
        if self._line_is_open:
            self.write("\n")


class Printer:
    """Shows a stream's tokens as they come: the answer on `out`, the reasoning on its own pen.

    A message to the user and an answer are text; a tool call is a line of its own,
    `tool call: NAME(ARGUMENTS)`. A pen that is None shows nothing. Used as a context manager it
    ends the line it is on, whatever happened.
    """

    def __init__(self, out: Pen | None, reasoning: Pen | None) -> None:
        self._out, self._reasoning = out, reasoning
        self._part: str | None = None  # of the message that is open: reasoning, call or text

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *exception: object) -> None:
        if (pen := self._pen()) is not None:
            pen.end_line()

    def show(self, event: TokenEvent) -> None:
        part = _part(event)
        if event.kind == "header":
            self._close()
            # A call without arguments has no content: its header shows it.
            if part == "call" and event.markup.endswith("<|message|>"):
                self._open(part, event)
        elif event.text:
            if part != self._part:
                self._close()
                self._open(part, event)
            self._write(event.text)

    def _open(self, part: str, event: TokenEvent) -> None:
        self._part = part
        if part == "call":
            self._write(f"tool call: {(event.recipient or '').removeprefix('functions.')}(")

    def _write(self, text: str) -> None:
        if (pen := self._pen()) is not None:
            pen.write(text, dim=self._part == "reasoning")

    def _close(self) -> None:
        if self._part == "call":
            self._write(")")
        if (pen := self._pen()) is not None:
            pen.end_line()
            if self._part == "reasoning":
                pen.write("\n")
        self._part = None

    def _pen(self) -> Pen | None:
        if self._part is None:
            return None
        return self._reasoning if self._part == "reasoning" else self._out


def _part(event: TokenEvent) -> str:
    if event.recipient is not None:
        return "call"
    return "reasoning" if event.channel == "analysis" else "text"


class Bar:
    """A progress bar on stderr, for work that is not done `after` seconds; gone when closed.

    `update` may be called from any thread. With `shown` false nothing ever appears.
    """

    def __init__(
        self, label: str, unit: Literal["bytes", "tokens"], *, shown: bool, after: float
    ) -> None:
        self._label, self._unit, self._open = label, unit, shown
        self._done = 0
        self._total: int | None = None
        self._bar: Progress | None = None
        self._lock = Lock()
        # Work may be silent for long, so the bar does not wait for an update.
        self._timer = Timer(after, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Bar:
        if self._open:
            self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, done: int, total: int) -> None:
        """`done` of `total`; either may start again, for a next stretch of work."""
        with self._lock:
            self._done, self._total = done, total
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._open = False
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _show(self) -> None:
        with self._lock:
            if self._open:
                self._bar = _progress(self._unit)
                self._bar.add_task(self._label, completed=self._done, total=self._total)
                self._bar.start()


def _progress(unit: str) -> Progress:
    # Imported here: most runs are over before a bar is due.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    sizes = (DownloadColumn(), TransferSpeedColumn())
    amount = sizes if unit == "bytes" else (MofNCompleteColumn(),)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
