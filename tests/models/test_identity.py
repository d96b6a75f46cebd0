"""Identity: a checkpoint is told from another, or from itself when changed, by samples alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.models.identity import identity_of


def identity(folder: Path) -> str:
    with Checkpoint.open(folder) as checkpoint:
        return identity_of(checkpoint)


def largest(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Without changing the file's time."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_it_stays_the_same_where_nothing_changed(breakable: Path) -> None:
    before = identity(breakable)
    moved = breakable.rename(breakable.with_name("elsewhere"))
    assert identity(moved) == before


@pytest.mark.parametrize("sample", [1, 32, 63])
def test_changed_weights_of_the_same_size_and_time(breakable: Path, sample: int) -> None:
    """The last byte of a sample, of 64 over the file, which is larger than all of them together."""
    path, before = largest(breakable), identity(breakable)
    data = path.read_bytes()
    assert len(data) > 64 * 4096
    at = (len(data) - 4096) * sample // 63 + 4095
    overwrite(path, at, bytes([data[at] ^ 1]))
    assert identity(breakable) != before


def test_a_file_written_anew_and_another_configuration(breakable: Path) -> None:
    found = [identity(breakable)]
    path = largest(breakable)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    found.append(identity(breakable))
    config = breakable / "config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    found.append(identity(breakable))
    assert len({*found}) == 3
    assert all(len(name) == 40 for name in found)


@pytest.mark.parametrize("name", [lambda folder: folder / "config.json", largest])
def test_a_file_that_is_gone_is_named(breakable: Path, name: Callable[[Path], Path]) -> None:
    with Checkpoint.open(breakable) as checkpoint:
        path = name(breakable)
        path.unlink()
        with pytest.raises(CheckpointError, match=path.name):
            identity_of(checkpoint)
