"""A folder of sealed files that form a tree: index by parent, bound in bytes, writing thread.

A file's name says all that the index needs: whose it is, its parent, its own name, how many items
it holds. Several processes may use one folder: a file appears by a rename, and one that another
process has removed is only missing. Files of any other name are never opened and never removed.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock, Thread

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.files.sealed import read_sealed, write_sealed

OWNER_DIGITS = 16

_WAITING = 1024  # calls in the queue
_ABANDONED = 3600  # seconds after which a temporary file is no longer being written
_ENDING = ".safetensors"
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{40})-([0-9a-f]{40})-(\d{1,9})\.safetensors")
_TEMPORARY = re.compile(r"\.[0-9a-f]{40}-[0-9a-f]{16}\.tmp")


@dataclass(frozen=True)
class Entry:
    """A file's place in the tree. owner: 16 hex digits; parent, name: 40; size: items in it."""

    owner: str
    parent: str
    name: str
    size: int

    @property
    def filename(self) -> str:
        return f"{self.owner}-{self.parent}-{self.name}-{self.size}{_ENDING}"


class FileStore:
    """The files of one owner in a folder.

    limit: bytes of all owners' files together. waiting: bytes that may wait to be written; one file
    may always.

    notes: what a person should know: one line, or none. It never raises OSError.
    """

    def __init__(self, folder: Path, limit: int, owner: str, waiting: int) -> None:
        self.folder, self.limit, self.owner, self.waiting = folder, limit, owner, waiting
        self._below: dict[str, dict[str, Entry]] = {}
        self._foreign = self._damaged = 0
        self._trouble: str | None = None
        self._queue: deque[tuple[int, Callable[[], None]]] = deque()
        self._queued = 0
        self._lock = Lock()
        self._thread: Thread | None = None
        self._try(self._scan)

    def below(self, parent: str) -> Mapping[str, Entry]:
        """The entries under a parent, by name."""
        return self._below.get(parent, {})

    def holds(self, entry: Entry) -> bool:
        """Whether the index has an entry, whose file may be still to be written."""
        return entry.name in self.below(entry.parent)

    def read(self, entry: Entry, header: bytes, nbytes: int) -> NDArray[np.uint8] | None:
        """The content of a file; None if it is gone or damaged, and then the index forgets it. One
        whose content is damaged is removed."""
        path, body = self.folder / entry.filename, None
        try:
            body = read_sealed(path, header, nbytes)
            if body is None:
                self._damaged += 1
                self._enqueue(0, partial(os.unlink, path))
        except FileNotFoundError:
            pass  # another process has removed it
        except OSError:
            self._damaged += 1
        if body is None:
            self.forget(entry)
        return body

    def write(self, entry: Entry, header: bytes, parts: Sequence[NDArray[np.uint8]]) -> bool:
        """Have a file written by the thread; False, and it is not, where too much waits already."""
        nbytes = len(header) + sum(part.nbytes for part in parts)
        if nbytes > self.limit or self.holds(entry):
            return False
        queued = self._enqueue(nbytes, partial(self._save, entry, nbytes, header, parts))
        if queued:
            self._index(entry)
        return queued

    def forget(self, entry: Entry) -> None:
        """Take an entry out of the index; its file stays."""
        with self._lock:
            below = self.below(entry.parent)
            self._below[entry.parent] = {n: e for n, e in below.items() if n != entry.name}

    def touch(self, entries: Sequence[Entry]) -> None:
        """Have files marked as used now, the last first: it is the first to be removed."""
        self._enqueue(0, partial(self._touch, entries))

    @property
    def notes(self) -> tuple[str, ...]:
        left = [
            f"{count} {what}"
            for count, what in ((self._damaged, "damaged"), (self._foreign, "of other origin"))
            if count
        ]
        said = [f"files in it are left out: {', '.join(left)}"] if left else []
        said += [self._trouble] if self._trouble else []
        return (f"the prefix store {self.folder}: {'; '.join(said)}",) if said else ()

    def close(self) -> None:
        """Wait until all is written that was accepted."""
        while (thread := self._thread) is not None:
            thread.join()

    def _enqueue(self, nbytes: int, call: Callable[[], None]) -> bool:
        with self._lock:
            full = self._queued and self._queued + nbytes > self.waiting
            if full or len(self._queue) >= _WAITING:
                return False
            self._queue.append((nbytes, call))
            self._queued += nbytes
            if self._thread is None:
                thread = Thread(target=self._work, name="prefix-store")
                thread.start()
                self._thread = thread
        return True

    def _work(self) -> None:
        """Make the calls that wait, and end. So no thread is left where nothing is written."""
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                nbytes, call = self._queue.popleft()
            self._try(call)
            with self._lock:
                self._queued -= nbytes

    def _try(self, call: Callable[[], None]) -> None:
        """Make a call; what goes wrong becomes a note."""
        try:
            call()
        except OSError as error:
            self._trouble = f"cannot be used: {error.strerror or error}"
        except Exception as error:  # of any kind: answers do not depend on the store
            self._trouble = f"cannot be used: {error!r}"

    def _scan(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.scandir(self.folder) as found:
            for file in found:
                entry = _entry(file.name)
                if entry is None:
                    self._foreign += not self._is_temporary(file)
                elif entry.owner != self.owner or not file.is_file(follow_symlinks=False):
                    self._foreign += 1
                else:
                    self._index(entry)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            self._trouble = "cannot be written"

    def _is_temporary(self, file: os.DirEntry[str]) -> bool:
        """Whether this is a file that some process is writing; one that it left is removed."""
        if _TEMPORARY.fullmatch(file.name) is None:
            return False
        with suppress(OSError):
            status = file.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > _ABANDONED:
                os.unlink(file.path)
        return True

    def _index(self, entry: Entry) -> None:
        with self._lock:
            self._below[entry.parent] = {**self.below(entry.parent), entry.name: entry}

    def _save(
        self, entry: Entry, nbytes: int, header: bytes, parts: Sequence[NDArray[np.uint8]]
    ) -> None:
        temporary = self.folder / f".{entry.name}-{secrets.token_hex(8)}.tmp"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(nbytes)
            write_sealed(self.folder / entry.filename, temporary, header, parts)
        except OSError:
            self.forget(entry)
            raise

    def _make_room(self, nbytes: int) -> None:
        """Remove the files that were used longest ago, of any owner, until `nbytes` more fit."""
        files = []
        with os.scandir(self.folder) as found:
            for file in found:
                entry = _entry(file.name)
                if entry is not None and file.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # another process has removed it
                        status = file.stat(follow_symlinks=False)
                        files.append((status.st_mtime_ns, file.path, status.st_size, entry))
        held = sum(size for _, _, size, _ in files)
        for _, path, size, entry in sorted(files, key=lambda file: file[:2]):
            if held + nbytes <= self.limit:
                return
            with suppress(FileNotFoundError):
                os.unlink(path)
            self.forget(entry)
            held -= size

    def _touch(self, entries: Sequence[Entry]) -> None:
        for entry in reversed(entries):
            try:
                os.utime(self.folder / entry.filename, follow_symlinks=False)
            except FileNotFoundError:
                self.forget(entry)


def _entry(filename: str) -> Entry | None:
    """What a file's name says; None if it is none of a store's."""
    match = _NAME.fullmatch(filename)
    return None if match is None else Entry(match[1], match[2], match[3], int(match[4]))
