"""The archive: a private folder of saved conversations, one JSON file each.

A file is replaced whole or not at all. One that another program has changed since it was read here
is never replaced: the conversation then goes on under another name.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from gptoss_mlx.cli.chat.transcript import Transcript, plain_text
from gptoss_mlx.errors import CheckpointError, SessionError
from gptoss_mlx.files.atomic import TEMPORARY, write_atomic
from gptoss_mlx.files.jsonfile import parse_json, shown
from gptoss_mlx.files.regular import read_regular

LIMIT = 64 << 20
"""Bytes of a saved conversation."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_ENDING = ".json"
_ABANDONED = 3600.0
"""Seconds after which a temporary file is one that a killed program has left."""


@dataclass(frozen=True)
class Saved:
    """A conversation that goes on under a name. digest: of its file as it was read or written here;
    None before."""

    name: str
    digest: bytes | None = None


@dataclass(frozen=True)
class Listed:
    """A line of the list: used in seconds since 1970. damage: why it cannot be read, None if it
    can."""

    name: str
    used: float
    turns: int = 0
    title: str = ""
    damage: str | None = None


class Archive:
    """folder: made, for its owner alone, when the first conversation is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """All names, the one used last first."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.folder) as files:
            for file in files:
                name = file.name.removesuffix(_ENDING)
                if file.name.endswith(_ENDING) and _NAME.fullmatch(name):
                    with suppress(OSError):  # it was deleted meanwhile
                        found.append((file.stat().st_mtime_ns, name))
        return [name for _, name in sorted(found, reverse=True)]

    def listed(self) -> list[Listed]:
        """What is saved, the one used last first; damaged files too."""
        lines = []
        for name in self.names():
            with suppress(OSError):  # it was deleted meanwhile
                used = self._path(name).stat().st_mtime
                try:
                    transcript, _ = self.read(name)
                    said = plain_text(transcript.turns[0][0]) if transcript.turns else ""
                    title = " ".join(said[:200].split())
                    lines.append(Listed(name, used, len(transcript.turns), title))
                except SessionError as error:
                    lines.append(Listed(name, used, damage=str(error)))
        return lines

    def holds(self, name: str) -> bool:
        """Whether something is saved under a name. Raises SessionError for one that none has."""
        return os.path.lexists(self._path(name))

    def read(self, name: str) -> tuple[Transcript, Saved]:
        """A saved conversation. Raises SessionError; the file is left as it is."""
        path = self._path(name)
        try:
            data = read_regular(path, LIMIT)
        except FileNotFoundError:
            raise SessionError(f"no conversation is saved as {name}; /sessions lists") from None
        except OSError as error:
            raise SessionError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            transcript = Transcript.from_json(parse_json(data, str(path)))
        except CheckpointError as error:
            raise SessionError(str(error)) from error
        except SessionError as error:
            raise SessionError(f"{path}: {error}") from error
        return transcript, Saved(name, _digest(data))

    def last(self) -> str:
        """The name used last. Raises SessionError if there is none."""
        for name in self.names():
            return name
        raise SessionError(f"no conversation is saved in {self.folder}")

    def write(self, saved: Saved, transcript: Transcript) -> Saved:
        """Save a conversation; under a name with a number behind it where the file is not the one
        that was read or written here. Raises SessionError."""
        data = json.dumps(transcript.as_json(), indent=1).encode("ascii")
        if len(data) > LIMIT:
            raise SessionError(f"the conversation takes {len(data)} bytes, more than {LIMIT}")
        name, digest = saved.name, _digest(data)
        try:
            with self._alone():
                name = self._free(saved)
                write_atomic(self._path(name), data)
        except OSError as error:
            if not self._stands(name, digest):
                raise SessionError(f"{self.folder}: cannot be written: {error.strerror}") from error
        return Saved(name, digest)

    def delete(self, name: str) -> None:
        """Raises SessionError."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise SessionError(f"no conversation is saved as {name}; /sessions lists") from None
        except OSError as error:
            raise SessionError(f"{name}: cannot be deleted: {error.strerror}") from error

    def new_name(self, text: str, day: datetime.date) -> str:
        """A name of the day and the first words of a message, such as 2026-11-24-why-is-the-sky."""
        words = re.findall(r"[a-z0-9]+", text[:200].lower())
        head = "-".join(words)[:32].rstrip("-")
        return self._unused(f"{day.isoformat()}-{head or 'chat'}")

    def _free(self, saved: Saved) -> str:
        """The name to write under: the conversation's own, unless its file is another's now."""
        now = self._digest_of(saved.name)
        return saved.name if now in (None, saved.digest) else self._unused(saved.name)

    def _stands(self, name: str, digest: bytes) -> bool:
        """Whether a file was written, though it could not be flushed."""
        with suppress(OSError):
            return self._digest_of(name) == digest
        return False

    def _digest_of(self, name: str) -> bytes | None:
        """The digest of a file, None if there is none. Raises OSError if that cannot be told."""
        try:
            return _digest(read_regular(self._path(name), LIMIT))
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.EFBIG, errno.EISDIR, errno.EINVAL):
                raise
            return b""  # it is no regular file, or too large: none of ours

    def _unused(self, name: str) -> str:
        if not os.path.lexists(self._path(name)):
            return name
        number = 2
        while os.path.lexists(self._path(f"{name[:70]}-{number}")):
            number += 1
        return f"{name[:70]}-{number}"

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise SessionError(
                f"{shown(name)} is no name: it has letters, digits, '.', '_' and '-', at most 80"
            )
        return self.folder / f"{name}{_ENDING}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other programs from writing meanwhile. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(self.folder / ".lock", flags, 0o600)
        try:
            import fcntl

            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._tidy()
            yield
        finally:
            os.close(descriptor)

    def _tidy(self) -> None:
        """Remove temporary files that killed programs have left."""
        for path in self.folder.glob(f".*{TEMPORARY}"):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > _ABANDONED:
                    path.unlink()


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()
