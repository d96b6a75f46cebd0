"""The journal of a conversion: a line for tensors that are safely on the disk.

The first line says what is being converted. It is written before any weights, and the journal is
removed only when everything else is in place. Every line carries a hash of itself and of all before
it, so that lines that a loss of power has torn, or that someone has changed, are not believed.
Recorded tensors are kept only if their hashes match what is on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

from gptoss_mlx.errors import CheckpointError, ConversionError
from gptoss_mlx.files import disk
from gptoss_mlx.files.jsonfile import parse_json
from gptoss_mlx.models.checkpoint import UNFINISHED

from . import folder as own
from .plan import Plan
from .source import Source

NOT_OURS = "exists and is not an unfinished conversion; choose another folder"

_FLUSH_BYTES = 512 << 20
_LIMIT = 4 << 20
_BEGINNING = b'{"target": '


@dataclass(frozen=True)
class _Lines:
    """What a journal says up to its first broken line.

    first: what is being converted. done: SHA-256 by tensor. nbytes: of these lines. check: the hash
    of the last of them.
    """

    first: Mapping[str, Any]
    done: Mapping[str, str]
    nbytes: int
    check: str


class Journal:
    """The journal of a folder, held by one process at a time."""

    def __init__(self, folder: Path, source: Source, plan: Plan) -> None:
        """Begin a journal, or continue the one there. Raises ConversionError if neither can be."""
        self._path = folder / UNFINISHED
        self.done: dict[str, str] = {}
        """SHA-256 by tensor."""
        self._pending: dict[str, str] = {}
        self._pending_files: set[int] = set()
        self._pending_bytes = 0
        self._lock = Lock()
        self._end, self._check = 0, ""
        self.is_new = not os.path.lexists(self._path)
        """Whether this run began the conversion."""
        if self.is_new and own.names(folder):
            raise ConversionError(f"{folder}: {NOT_OURS}")
        self._descriptor = own.open_new(self._path) if self.is_new else own.open_own(self._path)
        held = False
        try:
            _hold(self._descriptor, folder)
            held = True
            self._begin_or_go_on(folder, source, plan)
        except BaseException:
            with closing(self), suppress(OSError):
                if held and self.is_new:
                    self.remove()
            raise

    def add(self, hashes: Mapping[str, str], nbytes: int, files: set[int]) -> None:
        """Record written tensors, `nbytes` in all, and the descriptors they are in. From any
        thread."""
        with self._lock:
            self._pending |= hashes
            self._pending_files |= files
            self._pending_bytes += nbytes
            if self._pending_bytes >= _FLUSH_BYTES:
                self._flush()

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def remove(self) -> None:
        """Remove the journal, when everything is in place."""
        os.unlink(self._path)

    def close(self) -> None:
        os.close(self._descriptor)

    def _begin_or_go_on(self, folder: Path, source: Source, plan: Plan) -> None:
        first = _first(source, plan)
        found = _read(self._descriptor, folder, source, plan)
        if found is None:
            os.ftruncate(self._descriptor, 0)
            self._write(first)
            disk.sync(folder)
            return
        os.ftruncate(self._descriptor, found.nbytes)
        self._end, self._check = found.nbytes, found.check
        if found.first != first:  # written from another state of the source
            self._write(first)
        else:
            self.done |= found.done

    def _flush(self) -> None:
        if not self._pending:
            return
        for descriptor in self._pending_files:
            disk.flush(descriptor)
        self._write({"done": self._pending})
        self.done |= self._pending
        self._pending, self._pending_files, self._pending_bytes = {}, set(), 0

    def _write(self, body: Mapping[str, Any]) -> None:
        check = _check(self._check, body)
        line = json.dumps({**body, "check": check}).encode() + b"\n"
        own.write_all(self._descriptor, memoryview(line), self._end)
        disk.flush(self._descriptor)
        self._end, self._check = self._end + len(line), check


def recorded(folder: Path, source: Source, plan: Plan) -> Mapping[str, str]:
    """The tensors that the journal in a folder records, with their hashes; it is not changed.

    Raises ConversionError.
    """
    descriptor = own.open_own(folder / UNFINISHED)
    try:
        _hold(descriptor, folder)
        found = _read(descriptor, folder, source, plan)
    finally:
        os.close(descriptor)
    return found.done if found is not None and found.first == _first(source, plan) else {}


def _first(source: Source, plan: Plan) -> dict[str, Any]:
    return {
        "target": plan.target,
        "recipe": plan.recipe,
        "identity": plan.identity(source),
        "stamp": source.stamp,
    }


def _hold(descriptor: int, folder: Path) -> None:
    """Lock the folder for this process until the descriptor is closed, where the system has locks.

    Raises ConversionError if another process has it.
    """
    other = ConversionError(f"{folder}: another process is converting there")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise other from None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
            raise
    try:
        there = os.lstat(folder / UNFINISHED)
    except FileNotFoundError:
        raise other from None  # it finished just now
    if not os.path.samestat(os.fstat(descriptor), there):
        raise other


def _read(descriptor: int, folder: Path, source: Source, plan: Plan) -> _Lines | None:
    """The journal's lines; None if its process ended before the first was complete.

    Raises ConversionError if it is another conversion's, or no journal.
    """
    data = os.pread(descriptor, _LIMIT, 0)
    found = _lines(data)
    if found is None:
        torn = not data or b"\0" in data or (b"\n" not in data and data.startswith(_BEGINNING))
        if torn and own.names(folder) == {UNFINISHED}:
            return None
        raise ConversionError(
            f"{folder / UNFINISHED}: is not the journal of a conversion; choose another folder"
        )
    if found.first.get("identity") != plan.identity(source):
        raise ConversionError(
            f"{folder}: holds an unfinished conversion of another source or recipe;"
            " delete it or choose another folder"
        )
    own.check_names(folder, {UNFINISHED, *plan.names})
    return found


def _lines(data: bytes) -> _Lines | None:
    """Parse lines up to the first broken one; None if there is not even a first line."""
    first: Mapping[str, Any] | None = None
    done: dict[str, str] = {}
    nbytes, check = 0, ""
    for line in data.splitlines(keepends=True):
        try:
            body = parse_json(line, UNFINISHED)
            stored, right = body.pop("check", None), _check(check, body)
        except (CheckpointError, RecursionError):
            break
        if not line.endswith(b"\n") or stored != right:
            break
        nbytes, check = nbytes + len(line), right
        named = body.get("done")
        if isinstance(named, dict):
            done |= named
        else:
            first, done = body, {}
    return None if first is None else _Lines(first, done, nbytes, check)


def _check(before: str, body: Mapping[str, Any]) -> str:
    return sha256(f"{before} {json.dumps(body)}".encode()).hexdigest()
