"""Every system call that changes a disk, recorded, and what a crash after any of them leaves.

A `Recorder` stands in for the calls of `os` and may make one of them fail. `Memory` is a disk that
keeps only what was flushed: the data of a file once the file was, and a name once its folder was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

import numpy as np
import pytest

CRASHES = ("killed", "lost", "zeroed", "truncated", "names lost", "mixed", "mixed otherwise")
PAGE = 64
"""Bytes that a disk keeps or loses together; the files of tests are small."""

Tree = Mapping[Path, bytes | None]
"""What lies there by its path; None for a folder."""


@dataclass(frozen=True)
class Call:
    """A call that changed something: `name` of `os`, "create" for an `open` that made a file.

    number: the offset of a pwrite, the size of an ftruncate. target: the new name of a rename.
    """

    name: str
    path: Path
    data: bytes = b""
    number: int = 0
    target: Path | None = None


class Recorder:
    """The calls that changed what is below a folder, in order.

    fail: asked before each of them with its number and name; what it raises is what
    the call raises, and nothing is changed. Flushing does nothing else than being recorded.
    """

    def __init__(self, root: Path, fail: Callable[[int, str], None] | None = None) -> None:
        self.calls: list[Call] = []
        self._root, self._fail = root, fail
        self._asked = 0
        self._paths: dict[int, Path] = {}
        self._lock = Lock()

    def watch(self, patch: pytest.MonkeyPatch) -> Recorder:
        for name in ("open", "pwrite", "ftruncate", "fsync", "rename", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, self._watched(name, getattr(os, name)))
        return self

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                made = self._made(name, *arguments)
                if made is not None:
                    self._asked += 1
                    if self._fail is not None:
                        self._fail(self._asked - 1, made.name)
                    self.calls.append(made)
                result = None if name == "fsync" else real(*arguments, **options)
                if name == "open":
                    self._paths[result] = Path(arguments[0])
                return result

        return call

    def _made(self, name: str, *arguments: Any) -> Call | None:
        """None for what changes nothing, or nothing below the folder."""
        first = arguments[0]
        path = self._paths.get(first, Path()) if isinstance(first, int) else Path(first)
        if self._root not in (path, *path.parents):
            return None
        if name == "open":
            is_new = bool(arguments[1] & os.O_CREAT) and not os.path.lexists(path)
            return Call("create", path) if is_new else None
        if name == "pwrite":
            return Call(name, path, bytes(arguments[1]), arguments[2])
        if name == "ftruncate":
            return Call(name, path, number=arguments[1])
        return Call(name, path, target=Path(arguments[1]) if name == "rename" else None)


@dataclass
class _File:
    """A file's bytes as programs see them, and as they were when it was flushed."""

    now: bytearray
    synced: bytes = b""

    def make(self, call: Call) -> None:
        end = call.number + len(call.data)
        if call.name == "fsync":
            self.synced = bytes(self.now)
            return
        self.now.extend(bytes(max(0, end - len(self.now))))
        if call.name == "pwrite":
            self.now[call.number : end] = call.data
        else:
            del self.now[end:]

    def unwritten(self) -> bytes:
        """As long as it is, with zeros for what was not flushed."""
        data = np.frombuffer(bytes(self.now), np.uint8).copy()
        kept = np.frombuffer(self.synced[: len(data)], np.uint8)
        data[len(kept) :] = 0
        data[: len(kept)][data[: len(kept)] != kept] = 0
        return data.tobytes()


@dataclass(frozen=True)
class _Change:
    """Of names: one that goes, one that comes, and what has it; None for a folder."""

    gone: Path | None
    come: Path | None
    file: _File | None

    @property
    def folder(self) -> Path:
        return (self.gone or self.come or Path()).parent

    def apply(self, names: dict[Path, _File | None]) -> None:
        if self.gone is not None:
            names.pop(self.gone, None)
        if self.come is not None:
            names[self.come] = self.file


@dataclass
class Memory:
    """A disk below `root`: its names as programs see them, and as their folders were flushed."""

    root: Path
    names: dict[Path, _File | None] = field(default_factory=dict)
    synced: dict[Path, _File | None] = field(default_factory=dict)
    pending: list[_Change] = field(default_factory=list)
    """What happened to names since their folder was flushed."""

    @classmethod
    def holding(cls, root: Path, tree: Tree) -> Memory:
        """What a crash left is on the disk."""
        names = {
            path: None if data is None else _File(bytearray(data), data)
            for path, data in tree.items()
        }
        return cls(root, names, dict(names))

    def make(self, call: Call) -> None:
        file = self.names.get(call.path)
        if call.name in ("create", "mkdir"):
            self._change(None, call.path, _File(bytearray()) if call.name == "create" else None)
        elif call.name in ("rename", "unlink", "rmdir"):
            self._change(call.path, call.target, file)
        elif call.name == "fsync" and file is None:
            for change in self.pending:
                if change.folder == call.path:
                    change.apply(self.synced)
            self.pending = [change for change in self.pending if change.folder != call.path]
        else:
            assert file is not None
            file.make(call)

    def after(self, crash: str, seed: int = 0) -> Tree:
        """What a crash leaves.

        killed: all. lost: what was flushed. zeroed: all names and lengths, zeros for data that
        was not flushed. truncated: all names, of the data what was flushed. names lost: all data
        under names that were flushed. mixed: any page, length and change of a name, or not.
        """
        rng = Random(f"{crash} {seed}")
        names = dict(self.names if crash in ("killed", "zeroed", "truncated") else self.synced)
        if crash.startswith("mixed"):
            for change in self.pending:
                if rng.random() < 0.5:
                    change.apply(names)
        found: dict[Path, bytes | None] = {}
        for path, file in sorted(names.items()):
            if path.parent == self.root or path.parent in found:
                found[path] = None if file is None else _left(file, crash, rng)
        return found

    def _change(self, gone: Path | None, come: Path | None, file: _File | None) -> None:
        change = _Change(gone, come, file)
        change.apply(self.names)
        self.pending.append(change)


def _left(file: _File, crash: str, rng: Random) -> bytes:
    if crash in ("killed", "names lost"):
        return bytes(file.now)
    if crash in ("lost", "truncated"):
        return file.synced
    zeroed = file.unwritten()
    if crash == "zeroed":
        return zeroed
    pages = (
        (bytes(file.now) if rng.random() < 0.5 else zeroed)[at : at + PAGE]
        for at in range(0, len(zeroed), PAGE)
    )
    data = b"".join(pages)
    return data if rng.random() < 0.5 else data[: len(file.synced)]


def lay_out(tree: Tree, root: Path) -> None:
    """Make what lies below `root` the same as the tree."""
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path, data in tree.items():
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)
