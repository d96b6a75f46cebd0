"""The machine this runs on, asked: what it is, its memory, and how much of it a model may take.

Whatever cannot be found out is None. MLX is imported only where it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from gptoss_mlx.machine import Machine

_UNLIMITED = 1 << 60
_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def this_machine() -> Machine:
    """This machine as MLX has it; its limit is asked of Metal, or is that of `this_computer`."""
    info = device_info()
    if not info["gpu"]:
        return this_computer()
    total = int(psutil.virtual_memory().total)
    limit = info.get("max_recommended_working_set_size")
    return Machine("this machine", total, int(limit) if limit else None, True)


def this_computer(backend: str = "mlx") -> Machine:
    """This machine where its CPU computes: the limit is what is free."""
    total = int(psutil.virtual_memory().total)
    return Machine("this machine", total, free_bytes(), False, backend)


def mlx_device() -> str | None:
    """ "gpu" or "cpu", whichever MLX computes on; None where it is not installed."""
    try:
        return "gpu" if device_info()["gpu"] else "cpu"
    except ImportError:
        return None


def device_info() -> Mapping[str, Any]:
    """What MLX says of its default device, and "gpu": whether that is one."""
    import mlx.core as mx

    ask = getattr(mx, "device_info", None) or mx.metal.device_info
    return {**ask(), "gpu": mx.default_device() == mx.Device(mx.gpu)}


def free_bytes() -> int | None:
    """What could be taken without swapping: of the machine, or of this process's group."""
    found = (int(psutil.virtual_memory().available), group_bytes())
    return min((nbytes for nbytes in found if nbytes is not None), default=None)


def group_bytes(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int | None:
    """What the kernel's control groups (v1 or v2) still let this process take; None: any amount.

    Pages of files that a group holds in memory count as free: the kernel drops them first.
    """
    left = []
    for folder in _folders(groups, membership):
        for limit_name, used_name, cached_name in _FILES:
            limit = _number(folder / limit_name)
            if limit is not None and limit < _UNLIMITED:
                used = _number(folder / used_name) or 0
                left.append(max(0, limit - used + _dropped_first(folder, cached_name)))
    return min(left, default=None)


_FILES = (
    ("memory.max", "memory.current", "file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
)
"""v2 and v1: a group's limit, its use, and the name of the part of it that is files' pages."""


def _folders(groups: Path, membership: Path) -> Iterator[Path]:
    """The folders of this process's memory groups, each with all above it."""
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
