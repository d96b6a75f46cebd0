"""The runtime's structures (runtime/abi.h) and one launch through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

ORDERS = ("forward", "reverse", "random")
NOBODY = 0xFFFFFFFF
MOST_REPORTS = 16


class Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("writable", ctypes.c_uint32),
        ("initialised", ctypes.c_uint32),
    )


class Options(ctypes.Structure):
    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("access_limit", ctypes.c_uint64),
        ("order", ctypes.c_uint32),
        ("check", ctypes.c_uint32),
        ("trace", ctypes.c_uint32),
        ("threadgroup_limit", ctypes.c_uint32),
    )


class Traffic(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("read_bytes", "written_bytes", "accesses", "lines", "fewest_lines"),
            *("distinct_bytes", "touched_read", "touched_written", "unwritten"),
        )
    )


class Totals(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("accesses", "switches", "barriers", "simd_operations", "multiplications"),
            *("threadgroup_bytes", "threadgroup_read", "threadgroup_written"),
            *("threadgroup_accesses", "threadgroups", "code_base"),
            *("floating", "integer", "conversions"),
        )
    )


class Report(ctypes.Structure):
    _fields_ = (
        ("fault", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("other_kind", ctypes.c_uint32),
        ("thread", ctypes.c_uint32),
        ("other_thread", ctypes.c_uint32),
        ("group", ctypes.c_uint32),
        ("other_group", ctypes.c_uint32),
        ("code", ctypes.c_uint64),
        ("other_code", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("hint", ctypes.c_uint32),
        ("region", ctypes.c_char * 52),
    )


@dataclass(frozen=True)
class Argument:
    """A buffer of a launch: its memory as numpy has it, and what may be done with it."""

    name: str
    data: npt.NDArray[Any]
    writable: bool
    initialised: bool


@dataclass(frozen=True)
class Settings:
    """How to run: which checks, which order, how much a kernel may do."""

    check: bool
    order: str
    seed: int
    trace: bool
    threadgroup_limit: int
    access_limit: int


@dataclass(frozen=True)
class Outcome:
    """What the runtime hands back."""

    totals: Totals
    traffic: list[Traffic]
    reports: list[Report]


def launch(
    compiled: Path,
    runtime: Path,
    arguments: Sequence[Argument | None],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    settings: Settings,
) -> Outcome:
    """Runs the object's kernel over the grid; `arguments` by buffer index, None where unused."""
    # The runtime has one state: PyDLL keeps other threads out while it runs.
    library, kernel = ctypes.PyDLL(str(runtime)), ctypes.PyDLL(str(compiled))
    count = len(arguments)
    buffers, traffic = (Buffer * count)(), (Traffic * count)()
    for slot, one in zip(buffers, arguments, strict=True):
        if one is not None:
            slot.data, slot.bytes = one.data.ctypes.data, one.data.nbytes
            slot.name = one.name.encode()
            slot.writable, slot.initialised = one.writable, one.initialised
    options = Options(
        settings.seed,
        settings.access_limit,
        ORDERS.index(settings.order),
        settings.check,
        settings.trace,
        settings.threadgroup_limit,
    )
    totals, reports = Totals(), (Report * MOST_REPORTS)()
    three = ctypes.c_uint32 * 3
    found = library.metal_launch(
        ctypes.cast(kernel.metal_entry, ctypes.c_void_p),
        buffers,
        count,
        three(*grid),
        three(*threadgroup),
        ctypes.byref(options),
        traffic,
        ctypes.byref(totals),
        reports,
        MOST_REPORTS,
    )
    return Outcome(totals, list(traffic), list(reports[: min(found, MOST_REPORTS)]))
