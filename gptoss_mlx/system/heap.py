"""Allocator settings that return freed memory to the system, so that a plan can count on it."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_THRESHOLD = 1 << 20  # bytes: decoding stays below it and never waits for fresh pages


_SHAPES = 16


def keep_few_shapes() -> None:
    """Limit oneDNN's cache of matrix shapes to the last 16, unless oneDNN has been used already.

    It keeps code and scratch memory for each of up to 1024 shapes, and so does PyTorch's cache in
    front of it: prompts of many lengths took 1 GB in bfloat16 on a CPU, and 35 MiB with 16 shapes.
    A decoded token meets six. Both caches read their size when they are first used.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(_SHAPES))


def return_freed() -> None:
    """Fix glibc's mmap threshold at 1 MiB, so that larger blocks return to the system when freed.

    By default, freeing a block raises the threshold, up to 32 MiB, and smaller blocks lie in a heap
    that fragments and seldom shrinks: 120 MiB more than was in use after one prefill, with 860 MiB
    in all. At 128 KiB, the initial threshold, a decoded token takes 200 page faults; at 1 MiB it
    takes none, if the heap's free end may be two such blocks long before it is trimmed, the ratio
    that glibc has by default.
    Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2 * _THRESHOLD)
