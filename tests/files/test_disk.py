"""How fast a file is read that is not in memory, and when that cannot be told."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest

from gptoss_mlx.files import disk


def written(tmp_path: Path, nbytes: int) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(os.urandom(1 << 20) * (nbytes >> 20))
    disk.sync(path)
    return path


def _failing(patch: pytest.MonkeyPatch, error: int) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(error, os.strerror(error))

    patch.setattr(os, "fsync", fail)


def test_a_file_that_cannot_be_flushed_is_an_error_and_a_folder_only_if_it_could_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, 1 << 20)
    _failing(monkeypatch, errno.EIO)
    for place in (path, tmp_path):
        with pytest.raises(OSError, match="Input/output error"):
            disk.sync(place)
    _failing(monkeypatch, errno.EINVAL)  # what a file system without it says
    disk.sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        disk.sync(path)


@pytest.mark.parametrize("supported", [True, False])
def test_on_macos_the_drive_is_flushed_too(
    supported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, 1 << 20)
    asked: list[object] = []

    def control(descriptor: int, command: int) -> None:
        asked.append(command)
        if not supported:
            raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda descriptor: asked.append("fsync"))
    disk.sync(path)
    assert asked == ([51] if supported else [51, "fsync"])


def test_a_speed_is_measured_or_a_reason_given(tmp_path: Path) -> None:
    """On a disk it is found; a file system in memory keeps its pages and says so."""
    try:
        speed = disk.read_speed(written(tmp_path, 32 << 20))
    except ValueError as error:
        reason = str(error)
        assert "memory" in reason
    else:
        assert 1e6 < speed < 1e12


def test_only_what_is_not_in_memory_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, 32 << 20)
    timed: list[int] = []
    monkeypatch.setattr(disk, "_cold", lambda descriptor, offsets: offsets[2:6])
    monkeypatch.setattr(disk, "_timed", lambda descriptor, offsets: timed.extend(offsets) or 1.0)
    disk.read_speed(path)
    assert timed == [2 * disk.PIECE, 3 * disk.PIECE, 4 * disk.PIECE, 5 * disk.PIECE]
    monkeypatch.setattr(disk, "_cold", lambda descriptor, offsets: offsets[:3])
    with pytest.raises(ValueError, match="stays in memory"):
        disk.read_speed(path)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in memory")
def test_what_was_just_read_is_in_memory(tmp_path: Path) -> None:
    path = written(tmp_path, 1 << 20)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.pread(descriptor, 4096, 0)
        assert disk._in_memory(descriptor, 0)
    finally:
        os.close(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in memory")
def test_a_file_system_that_does_not_tell_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "preadv", unsupported)
    with pytest.raises(ValueError, match="does not tell"):
        disk.read_speed(written(tmp_path, 32 << 20))


@pytest.mark.parametrize(("size", "count"), [(10 << 30, 64), (21 << 20, 5)])
def test_the_pieces_are_spread_over_the_file_and_end_within_it(
    size: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(size)  # a hole: nothing is written
    seen: list[int] = []
    monkeypatch.setattr(disk, "_cold", lambda descriptor, offsets: seen.extend(offsets) or offsets)
    monkeypatch.setattr(disk, "_timed", lambda descriptor, offsets: 1.0)
    disk.read_speed(path)
    assert len(seen) == count
    assert seen[-1] > size * 0.7
    assert seen[-1] + disk.PIECE <= size


def test_a_small_file_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too small"):
        disk.read_speed(written(tmp_path, 8 << 20))


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk.read_speed(tmp_path / "none")
