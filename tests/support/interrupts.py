"""Ctrl-C at a chosen point of our own code: the n-th call, line or return of some modules."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import FrameType, ModuleType
from typing import Any

_QUIET = ("__del__", "<genexpr>")
"""Where Python drops an exception: when an object is collected, or a generator closed."""


class Interrupt:
    """A context in which this thread is interrupted at the `at`-th traced event, if it comes."""

    def __init__(self, modules: Iterable[ModuleType], at: int) -> None:
        self.files = {module.__file__ for module in modules}
        self.left, self.came = at, False

    def __enter__(self) -> Interrupt:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if code.co_filename not in self.files or code.co_name in _QUIET:
            return None
        self.left -= 1
        if self.left < 0 and not self.came:
            self.came = True
            raise KeyboardInterrupt
        return self._trace


def everywhere(modules: Iterable[ModuleType], call: Callable[[], object]) -> Iterator[int]:
    """Make a call again and again, interrupted at its first event, its second, and so on; gives
    the number of each, until one is not reached."""
    modules = list(modules)
    at = 0
    while True:
        with Interrupt(modules, at) as interrupt, suppress(KeyboardInterrupt):
            call()
        if not interrupt.came:
            return
        yield at
        at += 1


def left_open() -> set[object]:
    """Threads and files of this process, once what nobody holds is gone and has ended.

    Others of before may have ended since, so what is left is compared with `<=`.
    """
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith(("gptoss-load", "scales")):
            thread.join(10)
    return {*threading.enumerate(), *os.listdir("/dev/fd")}
