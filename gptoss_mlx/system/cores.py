"""The processor cores that are worth computing on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import psutil

from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown

VARIABLE = "GPTOSS_THREADS"
"""Environment variable: threads of the kernels, unless they are asked for in another way."""

MOST_THREADS = 512

_FAST = Path("/sys/devices/cpu_core/cpus")
"""On Intel's hybrid processors, the performance cores' numbers, such as 0-11."""


def fast_cores() -> int:
    """Physical cores that this process may use, the slow ones of a hybrid processor left out; or
    GPTOSS_THREADS.

    Memory is read as fast by one thread a core as by two, and a slow core keeps the others waiting.
    Raises OptionError if GPTOSS_THREADS is no number of threads.
    """
    asked = os.environ.get(VARIABLE)
    if asked:
        if not asked.isdecimal() or not 0 < int(asked) <= MOST_THREADS:
            raise OptionError(
                f"{VARIABLE} is {shown(asked)}, but must be a number from 1 to {MOST_THREADS}"
            )
        return int(asked)
    logical = _available()
    if sys.platform == "darwin" and (fast := _sysctl("hw.perflevel0.physicalcpu")):
        return min(fast, len(logical))
    chosen = logical & _listed(_FAST) or logical
    cores = {_core(cpu) for cpu in chosen}
    return max(1, min(len(cores), _quota() or len(cores)))


def _available() -> set[int]:
    """The numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(psutil.cpu_count() or 1))


def _core(cpu: int) -> str:
    """What names the physical core of a logical processor."""
    try:
        folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        return (folder / "thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _listed(path: Path) -> set[int]:
    """The numbers in a list such as 0-3,8."""
    found = set[int]()
    with contextlib.suppress(OSError, ValueError):
        for part in path.read_text(encoding="ascii").strip().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


def _quota() -> int | None:
    """Whole processors' worth of time that a control group allows; None is no limit."""
    with contextlib.suppress(OSError, ValueError):
        allowed, each = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, round(int(allowed) / int(each)))
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        quota, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii"))
            for name in ("quota", "period")
        )
        return max(1, round(quota / period)) if quota > 0 else None
    return None


def _sysctl(name: str) -> int | None:
    value, size = ctypes.c_int32(), ctypes.c_size_t(4)
    with contextlib.suppress(AttributeError):
        ask = ctypes.CDLL(None).sysctlbyname
        if ask(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0) == 0:
            return value.value
    return None
