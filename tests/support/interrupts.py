"""Ctrl-C at a chosen point of our own code: the n-th call, line or return of some modules."""

from __future__ import annotations

import dis
import gc
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from types import CodeType, FrameType, ModuleType
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
        if not _looks_for_signals(code, frame.f_lasti, event):
            return self._trace
        self.left -= 1
        if self.left < 0 and not self.came:
            self.came = True
            raise KeyboardInterrupt
        return self._trace


@cache
def _looks_for_signals(code: CodeType, at: int, event: str) -> bool:
    """False where Python never does, since it does so after calls and where loops and functions
    begin: at a yield, at a `try`, and before the `__exit__` of a `with`. None of these is covered
    by the block it belongs to: an interrupt there would leave a lock held."""
    if event != "line":
        return event != "return" or not code.co_flags & inspect.CO_GENERATOR
    ahead = [one for one in dis.get_instructions(code) if one.offset >= at]
    if ahead[0].opname == "NOP":
        return False
    exit = ahead[1:4] if ahead[0].opname == "SWAP" else ahead[:3]
    return [(one.opname, one.argval) for one in exit] != [("LOAD_CONST", None)] * 3


def everywhere(
    modules: Iterable[ModuleType], call: Callable[[], object], step: int = 1
) -> Iterator[int]:
    """Make a call again and again, interrupted at its first event, its second, and so on, or at
    every `step`-th; gives the number of each, until one is not reached."""
    modules = list(modules)
    at = 0
    while True:
        with Interrupt(modules, at) as interrupt, suppress(KeyboardInterrupt):
            call()
        if not interrupt.came:
            return
        yield at
        at += step


def left_open() -> set[object]:
    """Threads and files of this process, once what nobody holds is gone and has ended.

    Others of before may have ended since, so what is left is compared with `<=`.
    """
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith(("gptoss-load", "scales")):
            thread.join(10)
    return {*threading.enumerate(), *os.listdir("/dev/fd")}
