"""Opens what lies below an open folder; no symbolic link is followed, so none leads out of it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import PurePosixPath

_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

FOLDER = _READ | getattr(os, "O_DIRECTORY", 0)
"""Flags to open a folder."""

FILE = _READ | getattr(os, "O_NONBLOCK", 0)
"""Flags to read a file; one that is a pipe does not block."""


def open_below(folder: int, path: PurePosixPath, flags: int, *, make: bool = False) -> int:
    """A descriptor of a path below an open folder; the caller closes it.

    It is opened part by part, so that no part can become a link meanwhile. make: missing folders
    are made, the last part too. Raises OSError, also for a path that leads out.
    """
    if path.is_absolute() or ".." in path.parts:
        raise OSError(errno.ENOENT, "not a path in the folder")
    current = os.dup(folder)
    try:
        for number, part in enumerate(path.parts, 1):
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
            is_last = number == len(path.parts)
            following = os.open(part, flags if is_last else FOLDER, dir_fd=current)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current
