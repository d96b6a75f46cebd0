"""The files of a folder: listed and opened without ever leaving it.

No symbolic link is followed, neither to a file nor to a folder, so that a path in the folder is a
file in the folder.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gptoss_mlx.files.below import FILE, FOLDER, open_below

SKIPPED = frozenset(("__pycache__", "node_modules", "venv"))
"""Folders that hold no documents; nor do those whose name begins with a dot."""


@dataclass(frozen=True)
class Stamp:
    """What tells that a file has not changed: bytes, and times in nanoseconds."""

    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True)
class ListedFile:
    """A file. path: from the folder, with slashes. trouble: why it cannot be read, or ""."""

    path: str
    stamp: Stamp
    trouble: str = ""


_NOWHERE = Stamp(0, 0, 0)


def list_files(folder: Path) -> Iterator[ListedFile]:
    """The files below a folder, by name. Raises OSError if the folder itself cannot be read."""
    folders = [""]
    while folders:
        inside = folders.pop()
        try:
            with os.scandir(folder / inside) as found:
                entries = sorted(found, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if not inside:
                raise
            yield ListedFile(inside, _NOWHERE, error.strerror or str(error))
            continue
        files = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SKIPPED:
                continue
            path = f"{inside}/{entry.name}" if inside else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            else:
                files.append((path, entry))
        yield from (listed for path, entry in reversed(files) if (listed := _listed(path, entry)))


def _listed(path: str, entry: os.DirEntry[str]) -> ListedFile | None:
    """A regular file, or a symbolic link, which is named and not followed; None for all else."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return ListedFile(path, _NOWHERE, error.strerror or str(error))
    if stat.S_ISLNK(status.st_mode):
        return ListedFile(path, Stamp.of(status), "a symbolic link, which is not followed")
    return ListedFile(path, Stamp.of(status)) if stat.S_ISREG(status.st_mode) else None


def read_file(folder: Path, path: str, limit: int) -> tuple[bytes, Stamp]:
    """The bytes of a file in the folder, at most `limit`, and the stamp of what was read.

    Raises OSError, also for a longer file, one that is not regular, and for a symbolic link
    anywhere on the way.
    """
    root = os.open(folder.resolve(), FOLDER)
    try:
        descriptor = open_below(root, PurePosixPath(path), FILE)
    finally:
        os.close(root)
    with open(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes, the limit for it", path)
        return file.read(limit), Stamp.of(status)
