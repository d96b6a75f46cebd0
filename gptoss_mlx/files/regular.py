"""Opens regular files only. A pipe or a device under a checkpoint's name would block for ever."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> int:
    """A descriptor to read a regular file, symbolic links resolved; the caller closes it.

    Raises OSError, whose strerror says what is wrong, also where the path is not a regular file.
    """
    # Opening a device can have effects, so the path is checked first, and again once it is open.
    _check_regular(os.stat(path), path)
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    try:
        _check_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_itself(path: Path) -> int:
    """As `open_regular`, but a symbolic link is not followed: it is an OSError."""
    _check_regular(os.lstat(path), path)
    flags = _NONBLOCK | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        _check_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, at most `limit`. Raises OSError, also for a longer file."""
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes, the limit for it", str(path))
        return file.read(size)


def is_named(path: Path) -> bool:
    """Whether the folder has an entry of this name, be it a pipe or a link that leads nowhere."""
    return os.path.lexists(path)


def _check_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file", str(path))
    kind = next((kind for test, kind in _KINDS if test(status.st_mode)), "something special")
    raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))
