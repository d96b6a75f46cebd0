"""How an answer is shown while it comes: as Markdown on a terminal, else as the text it is.

Calls that are run here are shown with what they gave, which is shortened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, Timer
from typing import TYPE_CHECKING, Protocol, TextIO

from gptoss_mlx.cli.terminal import Output, Part, Printer, part_of
from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.spec.recipients import FUNCTIONS
from gptoss_mlx.tools.tool import Outcome

if TYPE_CHECKING:
    from gptoss_mlx.cli.chat.markdown import Painter

WINDOW = 5
"""Lines of the reasoning that are seen at a time."""

GIVEN = 10
"""Lines that are shown of what a call gave, at most."""

_GIVEN_CHARACTERS = 100 * GIVEN

_PERIOD = 1 / 15
"""Seconds between two updates, at least."""

_SHARE = 10
"""An update that takes long waits for so many times its own time."""


class View(Protocol):
    """Takes the tokens of an answer, and what calls gave. After `close`, which may come between
    them too, what is shown is complete and the cursor is at the beginning of a line."""

    def show(self, event: TokenEvent) -> None: ...

    def tell(self, outcome: Outcome) -> None: ...

    def close(self) -> None: ...


class PlainView:
    """The answer as it is written, without the reasoning.

    aside: where calls that are run here are shown; None for nowhere. runs: whether they are.
    """

    def __init__(self, out: Output, aside: Output | None = None, *, runs: bool = False) -> None:
        self._printer = Printer(out, aside, runs=runs)

    def show(self, event: TokenEvent) -> None:
        if part_of(event) != "reasoning":
            self._printer.show(event)

    def tell(self, outcome: Outcome) -> None:
        self._printer.tell("\n".join(shortened(outcome.text)))

    def close(self) -> None:
        self._printer.__exit__()


class TerminalView:
    """The answer as Markdown. Reasoning is seen in a window of a few lines, and folded to one.

    quiet: neither reasoning nor calls that are run here, which all are if `runs`.
    """

    def __init__(
        self,
        stream: TextIO,
        painter: Painter,
        *,
        quiet: bool,
        runs: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from gptoss_mlx.cli.chat.blocks import Blocks
        from gptoss_mlx.cli.chat.region import Region

        self._painter, self._quiet, self._clock = painter, quiet, clock
        self._hides_calls = quiet and runs
        self._region = Region(stream, lambda: painter.size)
        self._new_blocks = Blocks
        self._blocks = Blocks()
        self._part: Part | None = None
        self._text = ""  # of the reasoning or the call that is open
        self._called = ""  # whom that call is for
        self._tokens = 0
        self._begun = 0.0
        self._finished: list[str] = []  # lines that are still to be written
        self._due = 0.0
        self._lock = Lock()
        self._late: Timer | None = None

    def show(self, event: TokenEvent) -> None:
        with self._lock:
            self._take(event)
            wait = self._due - self._clock()
            if wait <= 0:
                self._draw()
            elif self._late is None:  # the next token may be long in coming
                self._late = Timer(wait, self._draw_late)
                self._late.daemon = True
                self._late.start()

    def tell(self, outcome: Outcome) -> None:
        if self._hides_calls:
            return
        with self._lock:
            self._close_part()
            for line in [*shortened(outcome.text), ""]:
                self._finished += self._painter.plain(line, "dim")
            self._draw()

    def close(self) -> None:
        with self._lock:
            self._close_part()
            self._draw()

    def _draw_late(self) -> None:
        with self._lock, suppress(OSError):  # whoever draws next meets the error
            if self._late is not None:
                self._draw()

    def _take(self, event: TokenEvent) -> None:
        part = part_of(event)
        if event.kind == "header":
            self._close_part()
            if part == "call" and event.markup.endswith("<|message|>"):
                self._open_part(part, event)
        elif event.text:
            if part != self._part:
                self._close_part()
                self._open_part(part, event)
            self._push(event.text)
        self._tokens += event.id is not None

    def _open_part(self, part: Part, event: TokenEvent) -> None:
        self._part, self._text, self._tokens, self._begun = part, "", 0, self._clock()
        self._called = (event.recipient or "").removeprefix(FUNCTIONS)

    def _push(self, text: str) -> None:
        if self._part != "text":
            self._text += text
            return
        for block in self._blocks.push(text):
            self._finished += self._painter.paint(block)

    def _close_part(self) -> None:
        if self._part == "text":
            for block in self._blocks.close():
                self._finished += self._painter.paint(block)
            self._blocks = self._new_blocks()
        elif self._part == "call":
            self._finished += self._call_lines(")")
        elif self._part == "reasoning" and not self._quiet:
            seconds = self._clock() - self._begun
            said = f"thought for {seconds:.1f} s, {counted(self._tokens, 'token')}"
            self._finished += self._painter.plain(said, "dim")
        self._part = None

    def _draw(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        begun = self._clock()
        self._region.update(self._finished, self._open_lines())
        self._finished = []
        now = self._clock()
        self._due = now + max(_PERIOD, _SHARE * (now - begun))

    def _open_lines(self) -> list[str]:
        if self._part == "call":
            return self._call_lines("")
        if self._part == "text":
            block = self._blocks.open
            return [] if block is None else self._painter.paint(block)
        if self._part is None or self._quiet:
            return []
        seen = self._text[-WINDOW * self._painter.size[0] :]
        lines = self._painter.plain(seen.strip(), "dim italic")[-WINDOW:]
        head = self._painter.plain(f"thinking, {counted(self._tokens, 'token')}", "dim")
        return [*head, *lines]

    def _call_lines(self, end: str) -> list[str]:
        """The call that is open; python's is code."""
        if self._hides_calls:
            return []
        if self._called != "python":
            return self._painter.plain(f"tool call: {self._called}({self._text}{end}")
        return [*self._painter.plain("python:", "dim"), *self._painter.code(self._text, "python")]


def shortened(text: str) -> list[str]:
    """The first lines of what a call gave, and how many more there are."""
    lines = text.rstrip("\n").split("\n")
    kept = lines[:GIVEN]
    room = _GIVEN_CHARACTERS
    for number, line in enumerate(kept):
        if len(line) > room:
            kept = [*kept[:number], line[:room] + " ..."]
            break
        room -= len(line)
    more = len(lines) - len(kept)
    return [*kept, f"... {counted(more, 'more line')}"] if more else kept


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 token" or "1,200 tokens"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
