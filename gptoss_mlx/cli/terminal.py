"""Text and progress on a terminal, or through a pipe.

The terminal is clean at every moment: a style is ended by the write that begins it, and the cursor
is never hidden.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import stat
import sys
from threading import Lock, Timer
from typing import TYPE_CHECKING, Literal, TextIO, TypeAlias

from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.spec.recipients import FUNCTIONS

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

_DIM, _NOT_DIM = "\x1b[2m", "\x1b[22m"
_STEERING = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but \t and \n: they move the cursor, set the title
    "\u2028\u2029"  # separators of lines
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # the direction of what follows
    "\u180e\u200b\u2060-\u2065\ufeff\ufff9-\ufffb"  # no width; ZWJ and ZWNJ are part of words
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"  # tags, which are not seen
    "\ud800-\udfff"  # halves of characters, as in names of files that are not UTF-8
    "]"
)


Part: TypeAlias = Literal["reasoning", "call", "text"]


def harmless(text: str) -> str:
    """The text with U+FFFD for every character that controls a terminal or is invisible on it."""
    return _STEERING.sub("\ufffd", text)


class Output:
    """Writes text to a stream and flushes it.

    stream: None if it was closed before; then nothing is written.
    optional: what cannot be written is dropped, so that no work ends because nobody reads it.
    """

    def __init__(self, stream: TextIO | None, *, optional: bool = False) -> None:
        self._stream, self._optional = stream, optional
        self.terminal = stream is not None and stream.isatty()
        self.styled = (
            self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        self._line_is_open = False
        self._poll = _watched(stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    def write(self, text: str, *, dim: bool = False) -> None:
        if self._stream is None or not text:
            return
        self._line_is_open = not text.endswith("\n")
        if self.terminal:
            text = harmless(text)
        try:
            self._stream.write(f"{_DIM}{text}{_NOT_DIM}" if dim and self.styled else text)
            self._stream.flush()
        except OSError:
            if not self._optional:
                raise

    def control(self, sequence: str) -> None:
        """Send a control sequence of our own to the terminal."""
        if self._stream is not None and self.terminal:
            with contextlib.suppress(OSError):
                self._stream.write(sequence)
                self._stream.flush()

    def end_line(self) -> None:
        """Go to the beginning of a line, if not there."""
        if self._line_is_open:
            self.write("\n")

    def deserted(self) -> bool:
        """Whether it is a pipe that nobody reads any more."""
        return self._poll is not None and bool(self._poll.poll(0))


def _watched(stream: TextIO | None) -> select.poll | None:
    """A poll that tells when the reader of a pipe or socket leaves; None for anything else."""
    if stream is None or not hasattr(select, "poll"):
        return None
    try:
        number = stream.fileno()
        mode = os.fstat(number).st_mode
    except (OSError, ValueError):  # it has no number
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return None
    poll = select.poll()
    poll.register(number, 0)  # only what is always reported: an error, a hang-up
    return poll


def show(*renderables: RenderableType) -> None:
    """Print tables to stdout, as wide as the terminal."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    with console.capture() as capture:  # rich itself would handle a broken pipe otherwise
        for renderable in renderables:
            console.print(renderable)
    sys.stdout.write(capture.get())


class Printer:
    """Shows a stream's tokens as they come: the answer on `out`, the reasoning on its own output.

    A message to the user and an answer are text; a tool call is a line of its own,
    `tool call: NAME(ARGUMENTS)`, on `out` as well unless `runs` says that it is run here: then it
    and what it gave are on the reasoning's output. An output that is None shows nothing. Used as a
    context manager it ends the line it is on, whatever happened.
    """

    def __init__(self, out: Output | None, reasoning: Output | None, *, runs: bool = False) -> None:
        self._out, self._reasoning, self._runs = out, reasoning, runs
        self._part: Part | None = None  # of the message that is open

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *exception: object) -> None:
        if (output := self._output()) is not None:
            output.end_line()

    def seen(self, event: TokenEvent) -> bool:
        """Whether the event is shown on a terminal."""
        output = self._output_of(part_of(event))
        return output is not None and output.terminal

    def show(self, event: TokenEvent) -> None:
        part = part_of(event)
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

    def tell(self, text: str) -> None:
        """Show what a call gave that is run here."""
        if self._reasoning is not None:
            self._reasoning.write(text.rstrip("\n") + "\n\n", dim=True)

    def _open(self, part: Part, event: TokenEvent) -> None:
        self._part = part
        if part == "call":
            self._write(f"tool call: {(event.recipient or '').removeprefix(FUNCTIONS)}(")

    def _write(self, text: str) -> None:
        if (output := self._output()) is not None:
            output.write(text, dim=self._is_aside(self._part))

    def _close(self) -> None:
        if self._part == "call":
            self._write(")")
        if (output := self._output()) is not None:
            output.end_line()
            if self._part == "reasoning":
                output.write("\n")
        self._part = None

    def _output(self) -> Output | None:
        return None if self._part is None else self._output_of(self._part)

    def _output_of(self, part: Part) -> Output | None:
        return self._reasoning if self._is_aside(part) else self._out

    def _is_aside(self, part: Part | None) -> bool:
        """Whether this is shown with the reasoning."""
        return part == "reasoning" or (part == "call" and self._runs)


def part_of(event: TokenEvent) -> Part:
    """What a token belongs to."""
    if event.recipient is not None:
        return "call"
    return "reasoning" if event.channel == "analysis" else "text"


class Bar:
    """A progress bar on stderr, for work that takes more than `after` seconds; closing removes it.

    `update` may be called from any thread. With `shown` false nothing ever appears. The cursor is
    never hidden, so that nothing has to be restored, however the process ends.
    """

    def __init__(
        self,
        label: str,
        unit: Literal["bytes", "tokens", "files", "servers"],
        *,
        shown: bool,
        after: float,
    ) -> None:
        self._label, self._unit, self._shown, self._after = harmless(label), unit, shown, after
        self._open = False
        self._done = 0
        self._total: int | None = None
        self._bar: Progress | None = None
        self._lock = Lock()
        self._timer: Timer | None = None

    def __enter__(self) -> Bar:
        self.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def open(self) -> None:
        """Start the time after which the bar is shown, unless it is open already."""
        if self._shown and not self._open:
            self._open = True
            # Work may be silent for long, so the bar does not wait for an update.
            self._timer = Timer(self._after, self._show)
            self._timer.daemon = True
            self._timer.start()

    def update(self, done: int, total: int | None) -> None:
        """Show `done` of `total`; either may start again, for a next stretch of work."""
        with self._lock:
            self._done, self._total = done, total
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._open = False
            if self._bar is not None:
                with contextlib.suppress(OSError):  # the terminal is gone
                    self._bar.stop()
                self._bar = None

    def _show(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._open and self._bar is None:
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

    class CursorShown(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False

    sizes = (DownloadColumn(), TransferSpeedColumn())
    amount = sizes if unit == "bytes" else (MofNCompleteColumn(),)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *amount,
        TimeRemainingColumn(),
        console=CursorShown(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
