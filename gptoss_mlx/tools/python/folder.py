"""The folder of a conversation's files, and the one inside the sandbox.

What code wrote is listed and copied without following a link, opening a device, or believing a
size; what is not a plain file of a plain name is left where it is.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from gptoss_mlx.errors import SandboxError
from gptoss_mlx.files.below import FILE, FOLDER, open_below
from gptoss_mlx.tools.python.limits import Limits

_DEPTH = 16  # folders in folders
_PIECE = 1 << 20
_LOOK = 0.5  # seconds between two looks at a folder that is being written to


@dataclass(frozen=True)
class Mark:
    """What tells that a file has changed."""

    inode: int
    size: int
    written: int

    @classmethod
    def of(cls, status: os.stat_result) -> Mark:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Fetched:
    """files: outside. trouble: what became of others, one line each."""

    files: tuple[Path, ...] = ()
    trouble: tuple[str, ...] = ()


class Folder(Protocol):
    """The files of a conversation, before and after each call."""

    def bring(self) -> None:
        """Before a call: let the code see what the person put there."""
        ...

    def fetch(self) -> Fetched:
        """After a call: the files that it made or changed."""
        ...

    def excess(self) -> str | None:
        """What is over its limit, where no kernel sees to it."""
        ...

    def close(self) -> None: ...


class DirectFolder:
    """A folder that the code itself writes to."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path, self._limits, self._looked = path, limits, -_LOOK
        self._seen: dict[str, Mark] = {}

    def bring(self) -> None:
        self._seen = self._marks()

    def fetch(self) -> Fetched:
        marks = self._marks()
        names = [name for name in changed(self._seen, marks) if is_plain(name)]
        return Fetched(tuple(self._path / name for name in names))

    def excess(self) -> str | None:
        if time.monotonic() < self._looked + _LOOK:
            return None
        self._looked, marks = time.monotonic(), self._marks()
        if len(marks) > self._limits.files:
            return "files"
        return "folder" if sum(mark.size for mark in marks.values()) > self._limits.folder else None

    def close(self) -> None:
        pass

    def _marks(self) -> dict[str, Mark]:
        """None where the code has removed the folder."""
        try:
            root = os.open(self._path, FOLDER)
        except OSError:
            return {}
        try:
            return dict(walk(root, self._limits.files + 1))
        finally:
            os.close(root)


class CopiedFolder:
    """A folder in the sandbox's memory, copied to and from the person's at each call.

    inside: its descriptor, which is closed with this. A file that the code removes stays outside.
    """

    def __init__(self, path: Path, inside: int, limits: Limits) -> None:
        self._path, self._inside, self._limits = path, inside, limits
        self._brought: dict[str, Mark] = {}
        self._seen: dict[str, Mark] = {}

    def bring(self) -> None:
        """Copy in what is new outside, as far as there is room. Raises OSError."""
        outside = os.open(self._path, FOLDER)
        try:
            for name, mark in walk(outside, self._limits.files):
                if self._brought.get(name) != mark and mark.size <= self._limits.file:
                    self._brought[name] = mark
                    # There may be no room. It is opened first, as the user that we are.
                    with suppress(OSError), opened(outside, name) as reading, _as_its_user():
                        copy(reading, self._inside, name, self._limits.file)
        finally:
            os.close(outside)
        self._seen = dict(walk(self._inside, self._limits.files))

    def fetch(self) -> Fetched:
        names, fetched = changed(self._seen, dict(walk(self._inside, self._limits.files))), []
        trouble: tuple[str, ...] = ()
        outside = os.open(self._path, FOLDER)
        try:
            there = dict(walk(outside, 2 * self._limits.files))
            for name in names:
                if self._fetch(name, outside, there):
                    there[name] = self._brought[name]
                    fetched.append(self._path / name)
        except OSError as error:
            trouble = (f"files cannot be kept: {error.strerror}",)
        finally:
            os.close(outside)
        if (missing := len(names) - len(fetched)) and not trouble:
            trouble = (f"{missing} files were not kept: a name or a size is over its limit",)
        return Fetched(tuple(fetched), trouble)

    def _fetch(self, name: str, outside: int, there: Mapping[str, Mark]) -> bool:
        """Copy a file out, if it may be there; whether it was. there: what is outside already.

        Raises OSError if no file can be written.
        """
        others = [mark.size for other, mark in there.items() if other != name]
        room = min(self._limits.file, self._limits.folder - sum(others))
        if not is_plain(name) or len(others) >= self._limits.files:
            return False
        try:
            with opened(self._inside, name) as reading:
                size = os.fstat(reading).st_size
                if size > room:
                    return False
                copy(reading, outside, name, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            return False  # code has made it unreadable, or a person a link of its folder
        self._brought[name] = Mark.of(os.stat(name, dir_fd=outside, follow_symlinks=False))
        return True

    def excess(self) -> str | None:
        return None  # the kernel refuses more

    def close(self) -> None:
        os.close(self._inside)


def _as_its_user() -> AbstractContextManager[None]:
    """Write as the user inside: root has no name there."""
    if os.geteuid() != 0:
        return nullcontext()
    from gptoss_mlx.tools.python.sandbox import libc, namespaces

    return libc.files_of(namespaces.NOBODY)


def make_folder(path: Path) -> None:
    """Raises SandboxError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, FOLDER))
    except OSError as error:
        raise SandboxError(f"{path}: cannot be Python's folder: {error.strerror}") from error


def walk(root: int, most: int) -> Iterator[tuple[str, Mark]]:
    """Names relative to an open folder, and marks, of at most so many files."""
    waiting, count = [PurePosixPath()], 0
    while waiting and count < most:
        folder = waiting.pop()
        with suppress(OSError):
            descriptor = open_below(root, folder, FOLDER)
            try:
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        count += 1
                        if count > most:
                            return
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            yield str(folder / entry.name), Mark.of(status)
                        elif stat.S_ISDIR(status.st_mode) and len(folder.parts) < _DEPTH:
                            waiting.append(folder / entry.name)
            finally:
                os.close(descriptor)


def changed(before: Mapping[str, Mark], after: Mapping[str, Mark]) -> list[str]:
    """Names of files that are new or changed; those of hidden files and folders are left out."""
    return sorted(
        name
        for name, mark in after.items()
        if before.get(name) != mark and not any(p.startswith(".") for p in name.split("/"))
    )


def is_plain(name: str) -> bool:
    """Whether a name can be shown and written anywhere: UTF-8, without control characters."""
    return name.isprintable() and all(
        not part.startswith("~") and len(os.fsencode(part)) <= 200 for part in name.split("/")
    )


@contextmanager
def opened(folder: int, name: str) -> Iterator[int]:
    """A file below an open folder, to be read. Raises OSError if it is not a plain one."""
    reading = open_below(folder, PurePosixPath(name), FILE)
    try:
        if not stat.S_ISREG(os.fstat(reading).st_mode):
            raise OSError(errno.EINVAL, "not a file")
        yield reading
    finally:
        os.close(reading)


def copy(reading: int, target: int, name: str, most: int) -> None:
    """Copy at most so many bytes of an open file to a file below an open folder. Raises OSError.

    It appears in whole: under a temporary name first. No link is followed.
    """
    path = PurePosixPath(name)
    folder = open_below(target, path.parent, FOLDER, make=True)
    try:
        _copy_into(folder, path.name, reading, most)
    finally:
        os.close(folder)


def _copy_into(folder: int, name: str, reading: int, most: int) -> None:
    temporary = f".{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    writing = os.open(temporary, flags, 0o644, dir_fd=folder)
    try:
        try:
            while most and (piece := os.read(reading, min(most, _PIECE))):
                most -= len(piece)
                while piece:
                    piece = piece[os.write(writing, piece) :]
        finally:
            os.close(writing)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise
