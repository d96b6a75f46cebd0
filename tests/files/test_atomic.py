"""Atomic writing: a failure at any system call leaves the file as it was, and nothing beside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.files.atomic import write_atomic

CALLS = ("open", "write", "fsync", "close", "rename")


class Failing:
    """Lets the n-th of the calls that writing makes fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.left, self.came = at, ""
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == -1:
                self.came = name
                if name == "close":
                    call(*args, **options)
                raise OSError(28, "No space left on device")
            return call(*args, **options)

        return wrapped


@pytest.mark.parametrize("before", [None, b"before"])
def test_a_failure_at_any_call_leaves_the_old_file_or_the_new(
    tmp_path: Path, before: bytes | None
) -> None:
    reached = set()
    for at in range(30):
        folder = tmp_path / f"{at} {before!r}"
        folder.mkdir()
        path = folder / "file"
        if before is not None:
            path.write_bytes(before)
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, at)
            try:
                write_atomic(path, b"after")
                failed = False
            except OSError:
                failed = True
        if not failing.came:
            break
        reached.add(failing.came)
        assert failed
        held = path.read_bytes() if path.exists() else None
        assert held in (before, b"after")
        assert [entry.name for entry in folder.iterdir()] in ([], ["file"])
    assert reached == set(CALLS)
    assert path.read_bytes() == b"after"


def test_what_is_written_is_private_and_replaces_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"kept")
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    write_atomic(tmp_path / "file", b"new")
    assert stat.S_IMODE((tmp_path / "file").lstat().st_mode) == 0o600
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("n" * 255), b"new")
    assert len(list(tmp_path.iterdir())) == 1
