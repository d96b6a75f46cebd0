"""A folder of documents: searched by BM25, opened by path, offline; files that change are seen."""

from __future__ import annotations

import posixpath
import sqlite3
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from threading import RLock
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.files.paths import expanded
from gptoss_mlx.tools.browser.decode import declared_charset, decode, is_text
from gptoss_mlx.tools.browser.documents.analysis import analyse
from gptoss_mlx.tools.browser.documents.catalog import Catalog, Ranked
from gptoss_mlx.tools.browser.documents.extract import extract
from gptoss_mlx.tools.browser.documents.folder import ListedFile, Stamp, list_files, read_file
from gptoss_mlx.tools.browser.documents.snippet import snippet
from gptoss_mlx.tools.browser.documents.store import DocumentStore, Known, remove_store
from gptoss_mlx.tools.browser.documents.unreadable import OtherKindError, UnreadableError
from gptoss_mlx.tools.browser.page import SOURCE, Page, document_page, domain, head
from gptoss_mlx.tools.browser.plain import one_line, plain
from gptoss_mlx.tools.browser.source import BrowsingError, Found, Hit

FILES_LIMIT = 20_000
FILE_LIMIT = 64 << 20
"""Bytes of a file."""
ALL_TEXT_LIMIT = 256 << 20
"""Characters of all documents together."""

_FRESH = 2_000_000_000  # nanoseconds in which a file system may give two versions the same times
_COMMIT = 200  # files between two commits, so that an index that is interrupted is not lost
_NAMED = 3  # files that a note names
_PLACE = 1024  # characters of a path

Progress = Callable[[int, int], None]
"""Called with (files read, files to read)."""

T = TypeVar("T")


class Documents:
    """The documents below a folder, as a source of pages; several conversations may share it.

    progress: called while the files are read that are new or have changed. Raises OptionError if
    the folder cannot be read or holds too much.
    """

    is_remote = False

    def __init__(self, folder: Path | str, progress: Progress | None = None) -> None:
        path = expanded(str(folder))
        if not path.is_dir():
            raise OptionError(f"{shown(str(folder))} is not a folder of documents")
        self._folder = path.resolve()
        self._lock = RLock()
        self._store = DocumentStore(self._folder)
        self._version, self._length = -1, 0
        self._catalog = Catalog(())
        self._left_out: dict[str, str] = {}
        self._refused: dict[str, tuple[Stamp, str]] = {}
        try:
            self.refresh(progress)
        except BaseException:
            self._store.close()
            raise

    @property
    def left_out(self) -> Mapping[str, str]:
        """The documents that could not be read, by path, and why."""
        return dict(self._left_out)

    def __len__(self) -> int:
        return len(self._catalog)

    def refresh(self, progress: Progress | None = None) -> None:
        """Read what is new or has changed, and forget what is gone. Raises OptionError."""
        with self._lock:
            self._safely(lambda: self._refresh(progress))

    def search(self, query: str, count: int) -> Found:
        with self._lock:
            return self._safely(lambda: self._search(query, count))

    def fetch(self, url: str, as_source: bool = False) -> Page:
        with self._lock:
            return self._safely(lambda: self._fetch(url, as_source))

    def close(self) -> None:
        with self._lock:
            self._store.close()

    def _safely(self, act: Callable[[], T]) -> T:
        """Do something; where the store fails, once more with an empty one in memory."""
        try:
            return act()
        except sqlite3.Error as error:
            self._store.close()
            if not isinstance(error, sqlite3.OperationalError):  # not only locked, or a full disk
                remove_store(self._folder)
            self._store, self._version = DocumentStore(None), -1
            return act()

    def _refresh(self, progress: Progress | None = None) -> None:
        files, known = self._listed(), self._store.known()
        gone = [path for path in known if path not in files]
        if gone:
            self._refused.clear()  # there may be room now
        changed = [file for file in files.values() if self._is_to_read(file, known.get(file.path))]
        self._length = sum(row.length for path, row in known.items() if path in files)
        is_new = bool(gone)
        for number, file in enumerate(changed):
            if progress is not None:
                progress(number, len(changed))
            is_new |= self._read(file, known.get(file.path))
            if number % _COMMIT == _COMMIT - 1:
                self._store.commit()
        if progress is not None and changed:
            progress(len(changed), len(changed))
        self._store.remove(gone)
        self._store.commit()
        if changed or gone:
            known = self._store.known()
        self._left_out = self._troubles(files, known)
        if is_new or self._version != self._store.version:
            self._version = self._store.version
            self._catalog = Catalog(self._store.documents())

    def _is_to_read(self, file: ListedFile, known: Known | None) -> bool:
        """Whether a file is new, has other times than before, or was read too soon to tell."""
        refused = self._refused.get(file.path)
        if file.trouble or (refused is not None and refused[0] == file.stamp):
            return False
        if known is None or known.stamp != file.stamp:
            return True
        return max(file.stamp.mtime, file.stamp.ctime) > known.read - _FRESH

    def _troubles(
        self, files: Mapping[str, ListedFile], known: Mapping[str, Known]
    ) -> dict[str, str]:
        """Why files gave no text, by path."""
        troubles = {path: row.trouble for path, row in known.items() if not row.is_other}
        troubles |= {path: why for path, (_, why) in self._refused.items() if path in files}
        troubles |= {path: file.trouble for path, file in files.items() if file.trouble}
        return {path: troubles[path] for path in sorted(troubles) if troubles[path]}

    def _search(self, query: str, count: int) -> Found:
        self._refresh_for_model()
        ranked, rarities = self._catalog.search(query, count), self._catalog.rarities(query)
        hits = tuple(hit for row in ranked if (hit := self._hit(row, rarities)) is not None)
        return Found(hits, self._notes())

    def _fetch(self, url: str, as_source: bool) -> Page:
        self._refresh_for_model()
        path = self._catalog.path(url)
        if path is None:
            raise BrowsingError(_unknown(url, len(self)))
        name = self._catalog.shown(path)
        if as_source:
            return self._source(path, name)
        document = self._store.text(path)
        if document is None:
            raise BrowsingError("This document is gone. Search again.")
        title = document.title or Path(path).name
        return document_page(name, title, document.text, document.links, self._folder / path)

    def _refresh_for_model(self) -> None:
        try:
            self._refresh()
        except OptionError as error:
            raise BrowsingError("The folder of documents cannot be read any more.") from error

    def _listed(self) -> dict[str, ListedFile]:
        files: dict[str, ListedFile] = {}
        try:
            for file in list_files(self._folder):
                files[file.path] = file
                if len(files) > FILES_LIMIT:
                    raise OptionError(
                        f"{self._folder}: has more than {FILES_LIMIT:,} files, the limit for"
                        " documents: name a smaller folder"
                    )
        except OSError as error:
            raise OptionError(f"{self._folder}: cannot be read: {error.strerror}") from error
        return files

    def _read(self, file: ListedFile, before: Known | None) -> bool:
        """Read a file into the store; False if the documents stay as they were."""
        now = time.time_ns()
        try:
            data, stamp = read_file(self._folder, file.path, FILE_LIMIT)
        except OSError as error:
            return self._refuse(file, before, error.strerror or str(error))
        digest = blake2b(data, digest_size=16).digest()
        if before is not None and before.digest == digest:
            self._store.touch(file.path, stamp, now)
            return False
        try:
            document = extract(file.path, data, lambda href: _resolved(file.path, href))
        except UnreadableError as error:
            if error.can_change:
                return self._refuse(file, before, str(error))
            is_other = isinstance(error, OtherKindError)
            self._store.put(file.path, Known(stamp, now, digest, str(error), is_other), None)
            return before is not None
        length = len(document.text)
        others = self._length - (0 if before is None else before.length)
        if others + length > ALL_TEXT_LIMIT:
            why = f"beyond {ALL_TEXT_LIMIT:,} characters, the limit for all"
            return self._refuse(file, before, why)
        self._length = others + length
        self._refused.pop(file.path, None)
        title = document.title or Path(file.path).name
        analysis = analyse(file.path, title, document.text)
        self._store.put(file.path, Known(stamp, now, digest, length=length), (document, analysis))
        return True

    def _refuse(self, file: ListedFile, before: Known | None, why: str) -> bool:
        """Leave a file out while these documents are open and it does not change."""
        self._refused[file.path] = (file.stamp, why)
        self._store.remove([file.path])
        return before is not None

    def _hit(self, row: Ranked, rarities: Mapping[int, float]) -> Hit | None:
        document = self._store.text(row.path)
        if document is None:
            return None
        name = self._catalog.shown(row.path)
        return Hit(
            url=name,
            title=document.title or Path(row.path).name,
            place=name,
            snippet=snippet(document.text[row.start : row.end], rarities),
            offset=len(head(name)) + row.start,
            file=self._folder / row.path,
        )

    def _source(self, path: str, name: str) -> Page:
        try:
            data, _ = read_file(self._folder, path, FILE_LIMIT)
        except OSError as error:
            raise BrowsingError(f"cannot be read: {error.strerror or error}") from error
        if not is_text(data[:8192]):
            raise BrowsingError("This file is not text. Open it without `view_source`.")
        text = plain(decode(data, declared_charset(data)))
        return document_page(SOURCE + name, Path(path).name, text, file=self._folder / path)

    def _notes(self) -> tuple[str, ...]:
        """What is left out."""
        count = len(self._left_out)
        if not count:
            return ()
        named = [f"{path} ({why})" for path, why in list(self._left_out.items())[:_NAMED]]
        more = ", ..." if count > _NAMED else ""
        files = "1 file is" if count == 1 else f"{count} files are"
        return (f"{files} left out: {', '.join(named)}{more}",)


def _resolved(path: str, href: str) -> tuple[str, str] | None:
    """Where a link in a document leads: to the web, or to another file of the folder."""
    try:
        parts = urlsplit(href)
    except ValueError:
        return None
    if parts.scheme in ("http", "https"):
        return href, domain(href)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(parts.path)))
    return None if target.startswith("..") else (one_line(target, _PLACE), "")


def _unknown(url: str, count: int) -> str:
    if url.startswith(("http:", "https:")):
        return "Only documents in a folder can be opened here, not web pages. Use `search`."
    return f"There is no such document among {count}. Use `search`, then `open` with a result's id."
