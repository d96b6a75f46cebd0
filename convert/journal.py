"""How far a conversion has come: a line for every tensor that is safely on the disk.

The first line says what is being converted and how to go on; it stands before any weight does,
and the file goes only when everything else is in place. A tensor's line is written after its bytes
were flushed, so what the journal names survives even a loss of power.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from gptoss_mlx.checkpoint import UNFINISHED
from gptoss_mlx.errors import CheckpointError, ConversionError
from gptoss_mlx.jsonfile import parse_json

_FLUSH_BYTES = 512 << 20


class Journal:
    """The journal of a folder, held by one process at a time."""

    def __init__(self, folder: Path, identity: str, resume: str) -> None:
        """Begin, or go on. Raises ConversionError for another conversion's journal or process."""
        self.identity = identity
        self._path = folder / UNFINISHED
        self._file = self._path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConversionError(f"{folder}: another process is converting there") from error
        self.done: dict[str, str] = {}
        """SHA-256 by tensor."""
        self._pending: dict[str, str] = {}
        self._pending_files: set[int] = set()
        self._pending_bytes = 0
        self._lock = Lock()
        try:
            self._begin_or_go_on(folder, identity, resume)
        except BaseException:
            self._file.close()
            raise

    def add(self, hashes: Mapping[str, str], nbytes: int, files: set[int]) -> None:
        """Tensors were written, `nbytes` in all, to these descriptors. From any thread."""
        with self._lock:
            self._pending |= hashes
            self._pending_files |= files
            self._pending_bytes += nbytes
            if self._pending_bytes >= _FLUSH_BYTES:
                self._flush()

    def forget(self, names: set[str]) -> None:
        """Tensors whose file has disappeared."""
        self.done = {name: digest for name, digest in self.done.items() if name not in names}

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def remove(self) -> None:
        """Everything is in place."""
        self._path.unlink()

    def close(self) -> None:
        self._file.close()

    def _begin_or_go_on(self, folder: Path, identity: str, resume: str) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        whole = lines[:-1]  # what follows the last newline was cut off
        if not whole:
            self._file.truncate(0)
            self._write([{"resume": resume, "identity": identity}])
            return
        try:
            first, *others = (parse_json(line, str(self._path)) for line in whole)
        except CheckpointError as error:
            raise ConversionError(f"{error}; delete {folder} and begin once more") from error
        if first.get("identity") != identity:
            raise ConversionError(
                f"{folder}: holds an unfinished conversion of another source or recipe"
                f" (`{first.get('resume')}`); delete it or choose another folder"
            )
        self._file.truncate(sum(len(line) + 1 for line in whole))
        for entry in others:
            self.done |= entry

    def _flush(self) -> None:
        for descriptor in self._pending_files:
            os.fsync(descriptor)
        self._write([{name: digest} for name, digest in self._pending.items()])
        self.done |= self._pending
        self._pending, self._pending_files, self._pending_bytes = {}, set(), 0

    def _write(self, lines: list[dict[str, str]]) -> None:
        self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())
