"""The folder of sealed files: nothing damaged is read as good, and nothing of others' goes."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from gptoss_mlx.files import sealed, store
from gptoss_mlx.files.sealed import SEAL, read_sealed, write_sealed
from gptoss_mlx.files.shard import header_bytes
from gptoss_mlx.files.store import Entry, FileStore
from tests.root import ROOT

OWNER = "0" * 15 + "1"
LAYOUT = {"tokens": ("U32", (3,)), "keys_values": ("F32", (2, 3)), "ring": ("BF16", (5,))}
NBYTES = 12 + 24 + 10


def entry(number: int, parent: int = 0, owner: str = OWNER) -> Entry:
    return Entry(owner, f"{parent:040x}", f"{number:040x}", 3)


def header(of: Entry) -> bytes:
    return header_bytes(LAYOUT, {"format": "test", "name": of.name, "digest": SEAL})


def content(number: int) -> list[NDArray[np.uint8]]:
    data = np.random.default_rng(number).integers(0, 256, NBYTES).astype(np.uint8)
    return [data[:12], data[12:]]


def opened(folder: Path, limit: int = 1 << 20, owner: str = OWNER) -> FileStore:
    return FileStore(folder, limit, owner, 1 << 20)


def filled(folder: Path, numbers: range, **options: Any) -> FileStore:
    files = opened(folder, **options)
    for number in numbers:
        files.write(entry(number), header(entry(number)), content(number))
        files.close()
    return files


def read(files: FileStore, number: int) -> bytes | None:
    body = files.read(entry(number), header(entry(number)), NBYTES)
    return None if body is None else body.tobytes()


def written(number: int) -> bytes:
    return np.concatenate(content(number)).tobytes()


def test_what_is_written_is_read_back_by_another(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    filled(folder, range(1, 4))
    files = opened(folder)
    assert {e.name for e in files.below("0" * 40).values()} == {entry(n).name for n in (1, 2, 3)}
    assert [read(files, n) for n in (1, 2, 3, 4)] == [written(1), written(2), written(3), None]
    assert files.notes == ()
    assert sorted(p.name for p in folder.iterdir()) == sorted(entry(n).filename for n in (1, 2, 3))
    with safe_open(folder / entry(1).filename, "numpy") as anybody:
        assert anybody.get_tensor("keys_values").tobytes() == written(1)[12:36]
    assert (folder / entry(1).filename).stat().st_mode & 0o077 == 0


def damages(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """Damaged copies, without end: flipped, cut, longer, and parts swapped, at any place."""
    while True:
        at, other = rng.randrange(len(data)), rng.randrange(len(data))
        yield data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        yield data[:at]
        yield data + rng.randbytes(rng.randrange(1, 9))
        yield data[:at] + rng.randbytes(1 + rng.randrange(8)) + data[at:]
        yield data[:at] + data[at + 1 + rng.randrange(8) :]
        low, high = sorted((at, other))
        yield data[high:] + data[low:high] + data[:low]
        yield data[:low] + rng.randbytes(high - low) + data[high:]
        yield data[:low] + data[low : low + 8].upper() + data[low + 8 :]


def none_is_read_as_good(folder: Path, count: int) -> None:
    filled(folder, range(1, 2))
    path = folder / entry(1).filename
    data = path.read_bytes()
    done = 0
    for damaged in damages(data, random.Random(0)):
        if damaged == data:
            continue
        path.write_bytes(damaged)
        assert read_sealed(path, header(entry(1)), NBYTES) is None, damaged
        done += 1
        if done == count:
            break
    path.write_bytes(data)
    assert read_sealed(path, header(entry(1)), NBYTES) is not None


def test_damaged_files_are_never_read_as_good(tmp_path: Path) -> None:
    none_is_read_as_good(tmp_path, 300)


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_never_read_as_good(tmp_path: Path) -> None:
    none_is_read_as_good(tmp_path, 10_000)


def test_a_bit_of_every_byte_counts(tmp_path: Path) -> None:
    filled(tmp_path, range(1, 2))
    path = tmp_path / entry(1).filename
    data = path.read_bytes()
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        assert read_sealed(path, header(entry(1)), NBYTES) is None, at


def test_a_file_under_anothers_name_is_damaged(tmp_path: Path) -> None:
    files = filled(tmp_path, range(1, 3))
    os.replace(tmp_path / entry(1).filename, tmp_path / entry(2).filename)
    assert read(files, 2) is None
    assert read(files, 1) is None  # gone, which is no damage
    assert files.notes == (f"the prefix store {tmp_path}: files in it are left out: 1 damaged",)
    files.write(entry(2), header(entry(2)), content(2))
    files.close()
    assert read(files, 2) == written(2)


def test_what_is_no_file_of_ours_is_left_alone_and_told_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    folder = tmp_path / "cache"
    filled(folder, range(1, 3))
    other = entry(7, owner="f" * 16)
    write_sealed(folder / other.filename, folder / "tmp", header(other), content(7))
    (folder / "notes.txt").write_bytes(b"mine")
    (folder / "model.safetensors").write_bytes(b"mine")
    (folder / entry(3).filename).symlink_to(outside)
    os.mkfifo(folder / entry(4).filename)
    (folder / entry(5).filename).mkdir()
    files = opened(folder, limit=4 * 400)
    assert {e.name for e in files.below("0" * 40).values()} == {entry(1).name, entry(2).name}
    assert len(files.notes) == 1
    for number in (3, 4, 5):  # even where something asks for them
        assert files.read(entry(number), header(entry(number)), NBYTES) is None
    for number in range(10, 30):
        files.write(entry(number), header(entry(number)), content(number))
        files.close()
    assert {"notes.txt", "model.safetensors", *(entry(n).filename for n in (3, 4, 5))} <= {
        *os.listdir(folder)
    }
    assert outside.read_bytes() == b"mine"
    assert len(files.notes) == 1


def test_the_bound_holds_and_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    size = len(header(entry(1))) + NBYTES
    files = filled(tmp_path, range(1, 4), limit=3 * size)
    for number in (1, 2, 3):
        os.utime(tmp_path / entry(number).filename, (number, number))
    files.touch([entry(1)])
    files.write(entry(4), header(entry(4)), content(4))
    files.close()
    assert [read(files, n) is not None for n in (1, 2, 3, 4)] == [True, False, True, True]
    assert not files.holds(entry(2))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * size
    small = opened(tmp_path / "small", limit=size - 1)
    assert not small.write(entry(1), header(entry(1)), content(1))


def test_an_abandoned_temporary_file_goes_and_a_new_one_stays(tmp_path: Path) -> None:
    names = [f".{'a' * 40}-{n:016x}.tmp" for n in (1, 2)]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    os.utime(tmp_path / names[0], (1, 1))
    assert opened(tmp_path).notes == ()
    assert os.listdir(tmp_path) == [names[1]]


QUIET = ("mkdir", "unlink", "utime", "close")
"""Where a call may fail and all is done all the same."""

CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "scandir", "utime")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.ENOENT])
def test_a_fault_at_any_call_is_one_note_and_leaves_nothing_half(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(header(entry(1))) + NBYTES
    for at in range(100):
        folder = tmp_path / str(at)
        filled(folder, range(1, 3), limit=2 * size)
        with monkeypatch.context() as patch:
            faults = Faults(patch, at, error)
            files = opened(folder, limit=2 * size)
            files.touch([entry(1)])
            files.write(entry(3), header(entry(3)), content(3))
            files.close()
        assert len(files.notes) <= 1
        if error != errno.ENOENT:  # as if another process had removed it: only missing
            assert files.notes or not faults.came or faults.came in QUIET
        after = opened(folder, limit=2 * size)
        assert all(read(after, n) in (None, written(n)) for n in (1, 2, 3))
        assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]
        if not faults.came:
            break
    else:
        pytest.fail("the calls do not end")
    assert at > 8


class Faults:
    """The `at`-th call of the system, on any thread, fails."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, error: int) -> None:
        self.left, self.error, self.came = at, error, ""
        for name in CALLS:
            patch.setattr(os, name, self._failing(name, getattr(os, name)))

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == -1:
                self.came = name
                if name == "close":
                    call(*args, **options)
                raise OSError(self.error, os.strerror(self.error))
            return call(*args, **options)

        return fail


def test_a_disk_that_hangs_makes_nobody_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def hang(*args: Any) -> None:
        assert go_on.wait(60)
        write_sealed(*args)

    monkeypatch.setattr(store, "write_sealed", hang)
    size = len(header(entry(1))) + NBYTES
    files = FileStore(tmp_path, 1 << 20, OWNER, 3 * size)
    taken = [files.write(entry(n), header(entry(n)), content(n)) for n in range(1, 9)]
    go_on.set()
    files.close()
    assert taken in ([True] * 3 + [False] * 5, [True] * 4 + [False] * 4)
    assert len(os.listdir(tmp_path)) == taken.count(True)
    assert not [t for t in threading.enumerate() if t.name == "prefix-store"]


def test_a_folder_that_cannot_be_made_or_was_removed_is_one_note(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"mine")
    files = filled(blocked, range(1, 3))
    assert len(files.notes) == 1
    assert blocked.read_bytes() == b"mine"
    folder = tmp_path / "cache"
    files = filled(folder, range(1, 3))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert read(files, 1) is None
    files.write(entry(3), header(entry(3)), content(3))
    files.close()
    assert read(files, 3) == written(3)
    assert files.notes == ()


WRITER = """
import sys
from pathlib import Path
from tests.files.test_store import *
files = opened(Path(sys.argv[1]), limit=int(sys.argv[2]))
for turn in range(3):
    for n in range(1, 25):
        files.write(entry(n), header(entry(n)), content(n))
        files.close()
        assert read(files, n + turn) in (None, written(n + turn))
print(*files.notes)
"""


def test_two_processes_may_use_one_folder(tmp_path: Path) -> None:
    limit = 12 * (len(header(entry(1))) + NBYTES)
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(limit)]
    runs = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        for _ in range(2)
    ]
    assert [run.communicate(timeout=120)[0].strip() for run in runs] == [b"", b""]
    assert [run.returncode for run in runs] == [0, 0]
    files = opened(tmp_path)
    assert all(read(files, n) in (None, written(n)) for n in range(1, 30))
    assert files.notes == ()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit * 13 // 12


def test_a_header_has_room_for_one_digest() -> None:
    assert header(entry(1)).count(SEAL.encode()) == 1
    assert len(sealed._sealed(header(entry(1)), content(1))) == len(header(entry(1)))
