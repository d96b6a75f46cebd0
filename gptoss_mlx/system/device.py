"""Queries this machine: what it is, its memory, and how much of it a model may take.

Whatever cannot be found out is None. MLX is imported only by the functions that query it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from gptoss_mlx.system.machine import Machine

RESERVED, RESERVED_BY_CORE = 512 << 20, 64 << 20
"""Bytes of `ulimit -v` that are set aside for address space reserved and hardly used: libraries,
thread stacks and heaps. With two cores MLX needed 210 to 400 MiB."""

_UNLIMITED = 1 << 60
_RUSAGE_INFO_V4, _LIFETIME_MAX_PHYS_FOOTPRINT = 4, 28  # <sys/resource.h>
_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def this_machine() -> Machine:
    """This machine as MLX sees it: with a GPU its limit is what Metal recommends, else it is
    `this_computer`."""
    info = device_info()
    if not info["gpu"]:
        return this_computer()
    total = int(psutil.virtual_memory().total)
    limit = info.get("max_recommended_working_set_size")
    return Machine("this machine", total, int(limit) if limit else None, True)


def this_computer(backend: str = "mlx") -> Machine:
    """This machine with its CPU computing: the limit is the free memory.

    If this process is limited, `memory` is what it may have: more is refused, however it is asked
    for.
    """
    total = int(psutil.virtual_memory().total)
    allowed = min(n for n in (total, group_limit(), process_bytes()) if n is not None)
    name = "this machine" if allowed == total else "this process, as it is limited,"
    return Machine(name, allowed, free_bytes(), False, backend)


def mlx_device() -> str | None:
    """ "gpu" or "cpu", whichever MLX computes on; None where it is not installed."""
    try:
        return "gpu" if device_info()["gpu"] else "cpu"
    except ImportError:
        return None


def device_info() -> Mapping[str, Any]:
    """MLX's description of its default device, and "gpu": whether that is a GPU."""
    import mlx.core as mx

    ask = getattr(mx, "device_info", None) or mx.metal.device_info
    return {**ask(), "gpu": mx.default_device() == mx.Device(mx.gpu)}


def free_bytes() -> int | None:
    """Bytes that could be taken without swapping: the least that the machine, this process's
    control group and its own limits leave."""
    found = (int(psutil.virtual_memory().available), group_bytes(), process_bytes())
    return min((nbytes for nbytes in found if nbytes is not None), default=None)


def process_bytes() -> int | None:
    """Bytes that `ulimit -v` and `ulimit -d` still let this process take, on Linux; None is no
    limit.

    A library that is refused memory by them ends the process by a signal.
    """
    if sys.platform != "linux":  # macOS ignores these limits
        return None
    import resource

    used = psutil.Process().memory_info()
    reserved = RESERVED + RESERVED_BY_CORE * min(os.cpu_count() or 1, 16)
    left = []
    for number, taken in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, used.data)):
        limit = resource.getrlimit(number)[0]
        if 0 <= limit < _UNLIMITED:  # -1 is no limit
            left.append(max(0, limit - taken - reserved))
    return min(left, default=None)


def peak_bytes() -> int:
    """Peak bytes of this process so far, as the system counts them.

    On macOS the footprint, which includes GPU memory; elsewhere the resident set, pages of programs
    and libraries included.
    """
    if sys.platform == "darwin" and (footprint := _peak_footprint()) is not None:
        return footprint
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere


def _peak_footprint() -> int | None:
    """ri_lifetime_max_phys_footprint of macOS's proc_pid_rusage."""
    usage = (ctypes.c_uint64 * 64)()  # rusage_info_v4: 16 bytes of an id, then 35 numbers
    with contextlib.suppress(OSError, AttributeError):
        ask = ctypes.CDLL(None).proc_pid_rusage
        if ask(os.getpid(), _RUSAGE_INFO_V4, ctypes.byref(usage)) == 0:
            return usage[2 + _LIFETIME_MAX_PHYS_FOOTPRINT] or None
    return None


def group_bytes(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes that control groups (v1 or v2) still let this process take; None is no limit.

    Pages of files that a group holds in memory count as free: the kernel drops them first.
    """
    left = []
    for folder, limit, used_name, cached_name in _limits(groups, membership):
        used = _number(folder / used_name) or 0
        left.append(max(0, limit - used + _dropped_first(folder, cached_name)))
    return min(left, default=None)


def group_limit(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int | None:
    """The least total that control groups set for this process and its neighbours; None is no
    limit."""
    return min((limit for _, limit, _, _ in _limits(groups, membership)), default=None)


def _limits(groups: Path, membership: Path) -> Iterator[tuple[Path, int, str, str]]:
    """Each limit in force: its folder, its bytes, the file with the bytes used, and the field of
    memory.stat with the bytes of cached pages."""
    for folder in _folders(groups, membership):
        for limit_name, used_name, cached_name in _FILES:
            limit = _number(folder / limit_name)
            if limit is not None and limit < _UNLIMITED:
                yield folder, limit, used_name, cached_name


_FILES = (
    ("memory.max", "memory.current", "file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
)
"""For v2 and v1: the files with a group's limit and use, and memory.stat's field for pages of
files."""


def _folders(groups: Path, membership: Path) -> Iterator[Path]:
    """The folders of this process's memory groups, each with its parents up to the root."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        # In a container the path may be that of the host, of which only the root is seen.
        below = root / path.lstrip("/")
        yield root
        yield from (folder for folder in (below, *below.parents) if root in folder.parents)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" stands for no limit
        return None


def _dropped_first(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}
    shared = values.get("total_shmem", values.get("shmem", 0))
    return max(0, values.get(name, 0) - shared)
