"""What a person has typed before: a private file, one JSON text a line.

What cannot be read or written is left out, so that no conversation ends because of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import History

from gptoss_mlx.files.atomic import write_atomic
from gptoss_mlx.files.regular import read_regular

LIMIT = 1 << 20
"""Bytes of the file; of a longer one the older half is dropped when it is opened."""

_LONGEST = 1 << 16  # bytes of one text; a longer one is not kept


class TypedHistory(History):
    """Texts typed, over all conversations and programs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.stat().st_size > LIMIT:
                lines = read_regular(path, 64 * LIMIT).splitlines(keepends=True)
                write_atomic(path, b"".join(lines[len(lines) // 2 :]))

    def load_history_strings(self) -> Iterable[str]:
        """The newest first."""
        lines: list[bytes] = []
        with suppress(OSError):
            lines = read_regular(self._path, 64 * LIMIT).splitlines()
        for line in reversed(lines):
            with suppress(ValueError, RecursionError):  # a damaged line
                text = json.loads(line)
                if isinstance(text, str):
                    yield text

    def store_string(self, string: str) -> None:
        line = json.dumps(string).encode("ascii") + b"\n"
        if len(line) > _LONGEST:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        with suppress(OSError):
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.write(descriptor, line)  # in one call, so that programs do not mix their lines
            finally:
                os.close(descriptor)
