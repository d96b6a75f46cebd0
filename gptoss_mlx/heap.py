"""The C library's heap: what is freed goes back to the system, so that a plan can count on it."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_THRESHOLD = 128 << 10  # bytes; glibc's own first value


def return_freed() -> None:
    """Keep glibc from raising its mmap threshold.

    It begins at 128 KiB, but freeing a larger block raises it, up to 32 MiB; from then on blocks
    below lie in a heap that fragments and seldom shrinks: 120 MiB more than was in use after one
    prefill, with 860 MiB in all. Set, it stays. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
