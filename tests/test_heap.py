"""Memory freed between what is kept goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt") or sys.platform != "linux",
    reason="only glibc's heap is set",
)

CODE = """
import ctypes, sys
from gptoss_mlx.heap import return_freed

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def taken(nbytes):
    place = libc.malloc(nbytes)
    ctypes.memset(place, 1, nbytes)
    return place

def anonymous():
    lines = open('/proc/self/status').read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith('RssAnon'))

if 'set' in sys.argv:
    return_freed()
libc.free(taken(24 << 20))  # glibc now serves what is smaller from its heap
before = anonymous()
blocks = [taken(4 << 20) for _ in range(16)]
for block in blocks[:-1]:
    libc.free(block)
print((anonymous() - before) >> 20)
"""


def left(*arguments: str) -> int:
    """MiB held after fifteen of sixteen blocks of 4 MiB were freed, the last one being kept."""
    run = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], check=True, capture_output=True, text=True
    )
    return int(run.stdout)


def test_what_is_freed_is_returned_at_once() -> None:
    assert left("set") <= 6
    assert left() >= 60  # without it, the test would show nothing
