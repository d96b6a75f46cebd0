"""Large blocks freed go back to the system; smaller ones are there for the next token."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt") or sys.platform != "linux",
    reason="only glibc's heap is set",
)

HEAP = """
import ctypes, resource, sys
from gptoss_mlx.system.heap import return_freed

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
"""
LARGE = """
libc.free(taken(24 << 20))  # glibc now serves what is smaller from its heap
before = anonymous()
blocks = [taken(4 << 20) for _ in range(16)]
for block in blocks[:-1]:
    libc.free(block)
print((anonymous() - before) >> 20)
"""
SMALL = """
libc.mallopt(-3, 1 << 20)
libc.free(taken(800_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    libc.free(taken(800_000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def measured(code: str, *arguments: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", HEAP + code, *arguments], check=True, capture_output=True, text=True
    )
    return int(run.stdout)


def test_large_blocks_freed_are_returned_at_once() -> None:
    """MiB held after fifteen of sixteen blocks of 4 MiB were freed, the last one being kept."""
    assert measured(LARGE, "set") <= 6
    assert measured(LARGE) >= 60  # without it, the test would show nothing


def test_a_token_takes_its_logits_without_new_pages() -> None:
    """Page faults of a hundred blocks as large as the logits, one after the other."""
    assert measured(SMALL, "set") < 100
    assert measured(SMALL) > 10_000
