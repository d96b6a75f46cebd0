"""Resource limits of a process, which all that it starts inherits."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator

from gptoss_mlx.tools.python.limits import Limits

_SPACE = 32 << 30
"""Bytes of addresses beyond the memory: libraries reserve many that they never touch."""

KEEPERS = 2
"""Our own processes, which the kernel counts with those of the code."""

_STACK = 8 << 20
_OWN_COUNT = (5, 14)
"""The Linux from which RLIMIT_NPROC counts a user namespace by itself, not all that a user runs."""


def limit(limits: Limits, separate: bool) -> None:
    """Limit this process. separate: whether it is in a user namespace of its own.

    A limit that is already lower stays. RLIMIT_DATA is below the memory of all processes, so that
    code which asks for too much gets a MemoryError and is not ended.
    """
    for name, most in _values(limits, separate):
        number = getattr(resource, name, None)
        if number is None:
            continue
        _, hard = resource.getrlimit(number)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(number, (most, most))
        except (ValueError, OSError):
            if sys.platform == "linux":  # macOS refuses some of them
                raise


def _values(limits: Limits, separate: bool) -> Iterator[tuple[str, int]]:
    yield "RLIMIT_CORE", 0
    yield "RLIMIT_MEMLOCK", 0
    yield "RLIMIT_MSGQUEUE", 0
    yield "RLIMIT_SIGPENDING", 256
    yield "RLIMIT_STACK", _STACK
    yield "RLIMIT_FSIZE", limits.file
    yield "RLIMIT_NOFILE", limits.opened
    yield "RLIMIT_DATA", limits.memory - limits.memory // 8
    yield "RLIMIT_AS", limits.memory + _SPACE
    if separate:
        yield "RLIMIT_NPROC", limits.processes + KEEPERS + _threads_outside()


def _threads_outside() -> int:
    """The threads that a kernel counts beside those of the namespace."""
    if tuple(map(int, os.uname().release.split(".")[:2])) >= _OWN_COUNT:
        return 0
    return 4096  # the keeper counts those of the namespace
