"""Atomic writing: a file has its name with all of its bytes, or it is as it was before.

What is written is private: only its owner may read it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gptoss_mlx.files import disk

TEMPORARY = ".tmp"
"""How the name of a file ends that is still being written; it begins with a dot."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file, or replace the one of this name. Raises OSError.

    A symbolic link is replaced, not followed.
    """
    temporary = path.with_name(f".{path.name[:100]}-{secrets.token_hex(8)}{TEMPORARY}")
    write_and_rename(path, temporary, [memoryview(data)])
    disk.sync(path.parent)


def write_and_rename(path: Path, temporary: Path, parts: Iterable[memoryview]) -> None:
    """Write a file under a temporary name, flush it and give it its name. Raises OSError."""
    create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(temporary, create, 0o600)
    try:
        try:
            for part in parts:
                _write_all(descriptor, part)
            disk.flush(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
