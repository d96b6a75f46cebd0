"""How an answer is shown while it comes: as Markdown on a terminal, else as the text it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, Timer
from typing import TYPE_CHECKING, Protocol, TextIO

from gptoss_mlx.cli.terminal import Output, Part, Printer, part_of
from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.spec.recipients import FUNCTIONS

if TYPE_CHECKING:
    from gptoss_mlx.cli.chat.markdown import Painter

WINDOW = 5
"""Lines of the reasoning that are seen at a time."""

_PERIOD = 1 / 15
"""Seconds between two updates, at least."""

_SHARE = 10
"""An update that takes long waits for so many times its own time."""


class View(Protocol):
    """Takes the tokens of an answer. What is shown is complete after `close`."""

    def show(self, event: TokenEvent) -> None: ...

    def close(self) -> None: ...


class PlainView:
    """The answer as it is written, without the reasoning."""

    def __init__(self, out: Output) -> None:
        self._printer = Printer(out, None)

    def show(self, event: TokenEvent) -> None:
        self._printer.show(event)

    def close(self) -> None:
        self._printer.__exit__()


class TerminalView:
    """The answer as Markdown. Reasoning is seen in a window of a few lines, and folded to one."""

    def __init__(
        self,
        stream: TextIO,
        painter: Painter,
        *,
        quiet: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from gptoss_mlx.cli.chat.blocks import Blocks
        from gptoss_mlx.cli.chat.region import Region

        self._painter, self._quiet, self._clock = painter, quiet, clock
        self._region = Region(stream, lambda: painter.size)
        self._new_blocks = Blocks
        self._blocks = Blocks()
        self._part: Part | None = None
        self._text = ""  # of the reasoning or the call that is open
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
        if part == "call":
            name = (event.recipient or "").removeprefix(FUNCTIONS)
            self._text = f"tool call: {name}("

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
            self._finished += self._painter.plain(self._text + ")")
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
            return self._painter.plain(self._text)
        if self._part == "text":
            block = self._blocks.open
            return [] if block is None else self._painter.paint(block)
        if self._part is None or self._quiet:
            return []
        seen = self._text[-WINDOW * self._painter.size[0] :]
        lines = self._painter.plain(seen.strip(), "dim italic")[-WINDOW:]
        head = self._painter.plain(f"thinking, {counted(self._tokens, 'token')}", "dim")
        return [*head, *lines]


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 token" or "1,200 tokens"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
