"""How fast a file is read that is not in memory, and when that cannot be told."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from gptoss_mlx import disk


def written(tmp_path: Path, nbytes: int) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(os.urandom(1 << 20) * (nbytes >> 20))
    disk.sync(path)
    return path


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
