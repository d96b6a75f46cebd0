"""Large pages of memory, of which a processor keeps the addresses of more bytes at hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

LARGE = 2 << 20
"""Bytes of a large page on x86-64, and on Arm with pages of 4 KiB."""

SAMPLES = 64
"""Places of a mapped file that are looked at."""

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPS = Path("/proc/self/smaps")

_RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


def large_pages(enabled: Path = _ENABLED) -> bool:
    """Whether Linux gives this process large pages where it asks for them."""
    try:
        return "[never]" not in enabled.read_text(encoding="ascii")
    except OSError:  # another system, or a kernel without them
        return False


def mapped_large(memory: NDArray[Any], maps: Path = _MAPS) -> bool:
    """Whether most of a mapped file lies in large pages. Some of its places are read for that.

    memory: uint8 of the file, several times as many large pages as there are samples. maps: what
    the kernel says of this process's memory.
    """
    for start in range(0, memory.size, max(LARGE, memory.size // SAMPLES)):
        memory[start]
    address, found = int(memory.ctypes.data), 0
    inside = False
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        if (bounds := _RANGE.match(line)) is not None:
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("FilePmdMapped:"):
            found = int(line.split()[1]) << 10
    return found >= 3 * SAMPLES * LARGE // 4
