"""The reader: exact bytes in any number of pieces, and files that change are not believed."""

from __future__ import annotations

import gc
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files import reader as reader_module
from gptoss_mlx.files.pool import Pool, Stopped
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import Tensor

DATA = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(DATA.tobytes())
    return path


def _tensor(path: Path, offset: int, nbytes: int) -> Tensor:
    return Tensor("t", "U8", (nbytes,), path, offset, nbytes)


@pytest.mark.parametrize("piece", [1 << 20, 1000, 7])
def test_bytes_arrive_in_pieces(piece: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "PIECE", piece)
    out = np.zeros((2, 1500), np.uint16)
    targets = [(_tensor(path, 11 + 3000 * i, 3000), out[i].data) for i in range(2)]
    reader = FileReader([path])
    load = reader.read(targets)
    load.wait()
    assert load.succeeded()
    np.testing.assert_array_equal(out.view(np.uint8).reshape(-1), DATA[11:6011])


def test_memory_of_another_size_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="5 bytes do not fit 4"):
        FileReader([path]).read([(_tensor(path, 0, 5), memoryview(bytearray(4)))])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone: cannot be opened: No such file"):
        FileReader([tmp_path / "gone"])


@pytest.mark.parametrize("change", ["cut short", "grown", "written to"])
def test_a_file_changed_in_place_is_not_believed(change: str, path: Path) -> None:
    reader = FileReader([path])
    if change == "cut short":
        os.truncate(path, 50)
    elif change == "grown":
        os.truncate(path, 20_000)
    else:
        os.utime(path, ns=(1, 1))
    load = reader.read([(_tensor(path, 0, 100), memoryview(bytearray(100)))])
    with pytest.raises(CheckpointError, match=f"{path}: was c.* while in use; load it again"):
        load.wait()
    assert not load.succeeded()


@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_a_file_moved_away_is_still_read(change: str, path: Path) -> None:
    reader = FileReader([path])
    path.unlink()
    if change == "replaced":
        path.write_bytes(b"\0" * 10_000)
    out = bytearray(100)
    reader.read([(_tensor(path, 0, 100), memoryview(out))]).wait()
    assert bytes(out) == DATA[:100].tobytes()


def test_an_error_of_the_disk_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    reader = FileReader([path])
    monkeypatch.setattr(os, "preadv", broken)
    load = reader.read([(_tensor(path, 0, 100), memoryview(bytearray(100)))])
    with pytest.raises(CheckpointError, match="data: cannot be read: Input/output error"):
        load.wait()


def test_what_is_abandoned_has_stopped_writing(path: Path) -> None:
    reader = FileReader([path], threads=1)
    out = np.zeros(9000, np.uint8)
    first = reader.read([(_tensor(path, 0, 9000), out.data)])
    second = reader.read([(_tensor(path, 0, 9000), np.zeros(9000, np.uint8).data)])
    done = second.abandon()
    assert done == second.succeeded()
    first.wait()
    assert first.abandon()
    np.testing.assert_array_equal(out, DATA[:9000])


def test_a_read_that_a_stop_left_in_the_queue_can_be_abandoned(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer's read fails and stops the reader while another layer's read waits its turn."""
    begun, gate, preadv = threading.Event(), threading.Event(), os.preadv

    def held(*arguments: Any) -> int:
        begun.set()
        gate.wait()
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", held)
    reader = FileReader([path], threads=1)
    out = memoryview(bytearray(100))
    running = reader.read([(_tensor(path, 0, 100), out)])
    queued = reader.read([(_tensor(path, 0, 100), memoryview(bytearray(100)))])
    begun.wait()
    stopping = threading.Thread(target=reader.stop)
    stopping.start()
    while not queued.failed():  # given up by the stop
        assert stopping.is_alive()
    gate.set()
    stopping.join()
    running.wait()
    assert not queued.abandon()
    with pytest.raises(Stopped):
        queued.wait()
    reader.read([(_tensor(path, 0, 100), out)]).wait()
    assert bytes(out) == DATA[:100].tobytes()


@pytest.mark.parametrize("special", ["a named pipe", "a folder", "a device"])
def test_only_regular_files_are_opened(special: str, tmp_path: Path) -> None:
    path = tmp_path / "special"
    if special == "a named pipe":
        os.mkfifo(path)
    elif special == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=f"special: cannot be opened: {special}, not a"):
        FileReader([path])


def test_files_are_closed_with_the_reader(path: Path) -> None:
    gc.collect()
    before = set(os.listdir("/dev/fd"))
    reader = FileReader([path])
    reader.read([(_tensor(path, 0, 9), memoryview(bytearray(9)))]).wait()
    assert len(os.listdir("/dev/fd")) == len(before) + 1
    del reader
    assert set(os.listdir("/dev/fd")) == before


def test_calls_that_were_called_off_in_the_queue_are_idle_and_not_over() -> None:
    """A thread ends them only when it comes to them."""
    gate, ran = threading.Event(), list[int]()
    threads = Pool(1, "test")

    def held() -> None:
        assert gate.wait(60)

    try:
        first = threads.start([held])
        second = threads.start([partial(ran.append, 1), partial(ran.append, 2)])
        assert not first.idle()
        assert not second.idle()
        assert not second.failed()
        second.call_off()
        assert second.failed()
        assert not second.abandon()
        for came_to in (False, True):  # as if a thread had taken it, and not yet let go of it
            second.tasks[0].started = came_to
            assert second.idle()
            assert second.failed()
            assert not second.over()
        assert not first.idle()
        gate.set()
        first.wait()
        with pytest.raises(Stopped):
            second.wait()
        assert first.idle()
        assert second.over()
        assert ran == []
    finally:
        gate.set()
        threads.close()
