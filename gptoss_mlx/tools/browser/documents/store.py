"""The store of what was read of a folder's files: their texts and terms, in one SQLite file.

It lies in the user's cache folder, private, and is only a cache: where it is damaged, in use or
cannot be written, the same is kept in memory.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from gptoss_mlx.files.paths import cache_folder
from gptoss_mlx.tools.browser.documents.analysis import VERSION as ANALYSIS_VERSION
from gptoss_mlx.tools.browser.documents.analysis import Analysis
from gptoss_mlx.tools.browser.documents.bm25 import Postings
from gptoss_mlx.tools.browser.documents.extract import VERSION as EXTRACT_VERSION
from gptoss_mlx.tools.browser.documents.extract import Extracted
from gptoss_mlx.tools.browser.documents.folder import Stamp
from gptoss_mlx.tools.browser.page import Link

_APPLICATION = 0x67707464  # marks the file as this package's
_TABLES = (
    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER,"
    " ctime INTEGER, read INTEGER, digest BLOB, trouble TEXT, is_other INTEGER, length INTEGER)",
    "CREATE TABLE IF NOT EXISTS texts (path BLOB PRIMARY KEY, title TEXT, text TEXT, links TEXT)",
    "CREATE TABLE IF NOT EXISTS terms (path BLOB PRIMARY KEY, title TEXT, starts BLOB, ends BLOB,"
    " terms BLOB, passages BLOB, counts BLOB)",
)
_ABANDONED = 90 * 86400  # seconds after which a store that nobody opened is removed
_WAIT = 2.0  # seconds for another process that writes


@dataclass(frozen=True)
class Known:
    """What is known of a file. read: nanoseconds since 1970. digest: of its bytes, in 16 bytes.

    trouble: why it gave no text, or "". is_other: whether it is no document at all. length:
    characters of its text.
    """

    stamp: Stamp
    read: int
    digest: bytes
    trouble: str = ""
    is_other: int = 0
    length: int = 0


@dataclass(frozen=True)
class Indexed:
    """A document as it is ranked."""

    path: str
    title: str
    analysis: Analysis


class DocumentStore:
    """The store of one folder; one thread at a time uses it."""

    def __init__(self, folder: Path | None) -> None:
        """folder: whose store it is; None for an empty one in memory."""
        opened = None if folder is None else _opened(folder)
        self._connection = opened or _created(":memory:")

    @property
    def version(self) -> int:
        """Another number once another process has written."""
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def known(self) -> dict[str, Known]:
        """What is known of every file, by its path."""
        rows = self._connection.execute("SELECT * FROM files")
        return {
            os.fsdecode(path): Known(Stamp(size, mtime, ctime), read, digest, trouble, *rest)
            for path, size, mtime, ctime, read, digest, trouble, *rest in rows
        }

    def put(self, path: str, known: Known, document: tuple[Extracted, Analysis] | None) -> None:
        """Keep a file's text and terms; None where it has none."""
        self.remove([path])
        key, stamp = os.fsencode(path), known.stamp
        times = stamp.size, stamp.mtime, stamp.ctime, known.read
        rest = known.digest, known.trouble, known.is_other, known.length
        self._insert("files", (key, *times, *rest))
        if document is not None:
            extracted, analysis = document
            links = {number: (link.url, link.title) for number, link in extracted.links.items()}
            postings = analysis.postings
            arrays = (analysis.starts, analysis.ends, postings.terms, postings.passages)
            blobs = [array.tobytes() for array in (*arrays, postings.counts)]
            self._insert("texts", (key, extracted.title, extracted.text, json.dumps(links)))
            self._insert("terms", (key, extracted.title, *blobs))

    def touch(self, path: str, stamp: Stamp, read: int) -> None:
        """A file's content is what it was."""
        self._connection.execute(
            "UPDATE files SET size = ?, mtime = ?, ctime = ?, read = ? WHERE path = ?",
            (stamp.size, stamp.mtime, stamp.ctime, read, os.fsencode(path)),
        )

    def remove(self, paths: Sequence[str]) -> None:
        rows = [(os.fsencode(path),) for path in paths]
        for table in ("files", "texts", "terms"):
            self._connection.executemany(f"DELETE FROM {table} WHERE path = ?", rows)

    def commit(self) -> None:
        self._connection.commit()

    def documents(self) -> Iterator[Indexed]:
        """All that have a text, by path."""
        rows = self._connection.execute("SELECT * FROM terms ORDER BY path")
        for path, title, starts, ends, terms, passages, counts in rows:
            postings = Postings(
                np.frombuffer(terms, np.uint64),
                np.frombuffer(passages, np.uint32),
                np.frombuffer(counts, np.float32),
            )
            places = np.frombuffer(starts, np.uint32), np.frombuffer(ends, np.uint32)
            yield Indexed(os.fsdecode(path), title, Analysis(*places, postings))

    def text(self, path: str) -> Extracted | None:
        """A document's text; None if it is gone."""
        query = "SELECT title, text, links FROM texts WHERE path = ?"
        row = self._connection.execute(query, (os.fsencode(path),)).fetchone()
        if row is None:
            return None
        title, text, links = row
        numbered = {int(number): Link(*link) for number, link in json.loads(links).items()}
        return Extracted(title, text, numbered)

    def close(self) -> None:
        self._connection.close()

    def _insert(self, table: str, row: tuple[object, ...]) -> None:
        marks = ", ".join("?" * len(row))
        self._connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)


def store_path(folder: Path) -> Path:
    """Where a folder's store lies. Raises OSError if there is no home folder."""
    name = blake2b(os.fsencode(folder), digest_size=16).hexdigest()
    version = f"{EXTRACT_VERSION}.{ANALYSIS_VERSION}"
    return cache_folder() / "documents" / f"{name}-{version}.sqlite"


def remove_store(folder: Path) -> None:
    """Remove a folder's store, which is damaged."""
    with suppress(OSError):
        store_path(folder).unlink()


def _opened(folder: Path) -> sqlite3.Connection | None:
    """The file's connection; None where it cannot be used. A damaged file is made anew."""
    with suppress(OSError, sqlite3.Error):
        path = store_path(folder)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(2):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
            try:
                connection = _created(str(path))
                os.utime(path)
                _remove_abandoned(path.parent)
                return connection
            except sqlite3.OperationalError:  # in use, or not to be written
                return None
            except sqlite3.DatabaseError:
                path.unlink()
    return None


def _remove_abandoned(folder: Path) -> None:
    """Remove the stores of folders that nobody has asked about for long."""
    for path in folder.glob("*.sqlite"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def _created(name: str) -> sqlite3.Connection:
    """A connection to a store that can be read and written. Raises sqlite3.Error."""
    connection = sqlite3.connect(name, timeout=_WAIT, check_same_thread=False)
    try:
        for table in _TABLES:
            connection.execute(table)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection
