"""Flushing what was written to the disk, and measuring how fast the disk is read."""

from __future__ import annotations

import errno
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gptoss_mlx.files.regular import open_regular

PIECE = 4 << 20  # bytes read at a time, about one of an expert's matrices
_PIECES = 64
_LEAST = 4  # the fewest pieces that make a measurement
_READERS = 4
_TIME = 2.0  # seconds after which no further piece is begun
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk. Raises OSError.

    A folder is skipped where the system cannot flush folders or the user may not open this one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        flush(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def flush(descriptor: int) -> None:
    """Put what was written to an open file on the disk itself. Raises OSError.

    On macOS fsync reaches only the drive's own cache, which a loss of power empties; F_FULLFSYNC
    goes further, but some network file systems support only fsync.
    """
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    os.fsync(descriptor)


def read_speed(path: Path) -> float:
    """Uncached read speed of a file in bytes a second, measured with four threads.

    On Linux pieces of the file are first dropped from the page cache, and those that stay in it are
    left out; on macOS the cache is bypassed, but pages that are in it may still be served from
    there. Raises ValueError, which says why, if the speed cannot be measured; OSError if the file
    cannot be read.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        step = max(PIECE, size // _PIECES // PIECE * PIECE)
        offsets = list(range(0, size - PIECE + 1, step))[:_PIECES]
        if len(offsets) < _LEAST:
            raise ValueError(f"{path.name} is too small to tell")
        cold = _cold(descriptor, offsets)
        if len(cold) < _LEAST:
            raise ValueError(f"{path.name} stays in memory")
        return _timed(descriptor, cold)
    finally:
        os.close(descriptor)


def _timed(descriptor: int, offsets: list[int]) -> float:
    begun = time.perf_counter()

    def read(offset: int) -> int:
        if time.perf_counter() - begun > _TIME:
            return 0
        return len(os.pread(descriptor, PIECE, offset))

    with ThreadPoolExecutor(_READERS, thread_name_prefix="disk") as pool:
        done = sum(pool.map(read, offsets))
    return done / (time.perf_counter() - begun)


def _cold(descriptor: int, offsets: list[int]) -> list[int]:
    """Offsets of the pieces that a read must fetch from the disk."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)
        return offsets
    for offset in offsets:
        os.posix_fadvise(descriptor, offset, PIECE, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead into the next one
    return [offset for offset in offsets if not _in_memory(descriptor, offset)]


def _in_memory(descriptor: int, offset: int) -> bool:
    """Whether a byte can be read without waiting for the disk."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) > 0
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        raise ValueError("the file system does not tell what is in memory") from error
