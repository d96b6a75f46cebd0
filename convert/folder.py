"""The folder a conversion is written to: how its files are made, opened, written and named.

Files are made and opened for writing only here. No symbolic link is followed, no file that exists
is made anew, and none with a second hard link is written to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptoss_mlx.errors import ConversionError
from gptoss_mlx.files import disk
from gptoss_mlx.files.jsonfile import shown

PARTIAL = ".partial"
"""Suffix of a file's name until the file is complete."""

_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def names(folder: Path) -> set[str]:
    """The names in a folder, without hidden files, which systems leave everywhere."""
    return {name for name in os.listdir(folder) if not name.startswith(".")}


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder and its missing parents; if the block fails, the empty ones are removed."""
    new: list[Path] = []
    try:
        for path in (*reversed(folder.parents), folder):
            if not path.is_dir():
                os.mkdir(path)
                new.append(path)
                disk.sync(path.parent)
        yield
    except BaseException:
        with suppress(OSError):
            for path in reversed(new):
                os.rmdir(path)
        raise


def open_new(path: Path) -> int:
    """A descriptor of a file that was not there. Raises FileExistsError."""
    return os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o644)


def open_own(path: Path) -> int:
    """A descriptor of a file an earlier run made.

    Raises ConversionError if it is not a regular file of a single name.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise ConversionError(
            f"{path}: is no file of this conversion, but a link or something special;"
            " choose another folder"
        )
    return os.open(path, _OPEN)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file, atomically: whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    with suppress(FileNotFoundError):
        os.unlink(partial)
    descriptor = open_new(partial)
    try:
        write_all(descriptor, memoryview(data), 0)
        disk.flush(descriptor)
    finally:
        os.close(descriptor)
    os.rename(partial, path)


def check_names(folder: Path, own: set[str]) -> None:
    """Raises ConversionError for a file that does not belong to the conversion."""
    for name in sorted(names(folder) - own - {name + PARTIAL for name in own}):
        raise ConversionError(
            f"{folder}: holds {shown(name)}, which is none of this conversion's files;"
            " move it, or choose another folder"
        )
