"""The echo of keys on a terminal: off while nothing is asked, and as it was found in the end."""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from gptoss_mlx.launch import INTERRUPTED

_AT_THE_END = b"\x1b[?2004l\x1b[?25h\x1b[0m\r\n"  # no bracketed paste, a cursor, no style


class Echo:
    """The settings of a terminal, which a `with` block leaves as they were found, also where a
    signal ends the process. number: the terminal's descriptor."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._found = termios.tcgetattr(number)
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Echo:
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) == signal.SIG_DFL:  # nohup has the program ignore it
                self._handlers[signum] = signal.signal(signum, self._end)
        return self

    def __exit__(self, *exception: object) -> None:
        self._set(self._found)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def end_at_once(self, signum: int, frame: FrameType | None) -> None:
        """Handler that ends the process as Ctrl-C does, with nothing but the terminal restored."""
        self._leave()
        os._exit(INTERRUPTED)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Keys are not shown; those pressed meanwhile go to the next prompt, Enter as Enter. Ctrl-C
        is a signal as ever."""
        before = termios.tcgetattr(self._number)
        quiet = termios.tcgetattr(self._number)
        quiet[0] &= ~termios.ICRNL
        quiet[3] = quiet[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH
        self._set(quiet)
        try:
            yield
        finally:
            self._set(before)

    @contextmanager
    def as_found(self) -> Iterator[None]:
        """For another program, such as an editor."""
        before = termios.tcgetattr(self._number)
        self._set(self._found)
        try:
            yield
        finally:
            self._set(before)

    def _end(self, signum: int, frame: FrameType | None) -> None:
        self._leave()
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    def _leave(self) -> None:
        self._set(self._found)
        with suppress(OSError):
            os.write(2, _AT_THE_END)

    def _set(self, attributes: list[Any]) -> None:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(self._number, termios.TCSANOW, attributes)
