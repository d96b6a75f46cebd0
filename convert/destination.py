"""Writes a plan into a folder, so that it can be killed at any moment and go on where it was.

Weights are written under `.partial` names at their final places, by a few threads that each read,
make, hash and write one span of rows at a time: memory stays at a few spans whatever the model.
When all are there the files get their names, the small files follow, the manifest is the last of
them, and only then the journal goes, with which the runtime refuses the folder.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from threading import Event, Lock

import numpy as np

from gptoss_mlx.checkpoint import NAN_SCALE, Progress
from gptoss_mlx.disk import sync
from gptoss_mlx.errors import CheckpointError, ConversionError

from . import rules
from .journal import Journal
from .manifest import manifest
from .plan import File, Plan, Task
from .source import MANIFEST, Source

_WORKERS = 4
_SPARE_DISK = 64 << 20


def write(
    source: Source, plan: Plan, folder: Path, resume: str, progress: Progress | None = None
) -> None:
    """Write, or finish, a conversion. resume: the command that an unfinished folder tells.

    progress: called from any thread. Raises ConversionError or CheckpointError; what is written by
    then stays for the next try.
    """
    with _told(folder, resume):
        folder.mkdir(parents=True, exist_ok=True)
        with closing(Journal(folder, plan.identity(source), resume)) as journal:
            _forget_lost(plan, folder, journal)
            descriptors = {file.name: _opened(folder, file) for file in plan.files}
            try:
                _Weights(plan, journal, descriptors, progress).write()
            finally:
                for descriptor in descriptors.values():
                    os.close(descriptor)
            _check_unchanged(source, plan, folder, journal)
            for file in plan.files:
                if (partial := _partial(folder, file)).exists():
                    partial.rename(folder / file.name)
            _write_small_files(source, plan, folder, journal.done)
            sync(folder)
            journal.remove()
        sync(folder)


def is_there(folder: Path, file: File) -> bool:
    """Whether the folder holds a file of this name, size and header."""
    path = folder / file.name
    if not path.is_file() or path.stat().st_size != file.nbytes:
        return False
    with path.open("rb") as opened:
        return opened.read(len(file.head)) == file.head


def missing_bytes(plan: Plan, folder: Path) -> int:
    """Bytes of disk that the plan still needs there."""
    present = 0
    for file in plan.files:
        for path in (folder / file.name, _partial(folder, file)):
            if path.exists():
                present += min(path.stat().st_blocks * 512, file.nbytes)
    return max(0, plan.nbytes - present)


def check_room(plan: Plan, folder: Path) -> None:
    """Raises ConversionError if the disk has no room for what is still to be written."""
    needed, free = missing_bytes(plan, folder) + _SPARE_DISK, free_bytes(folder)
    if free < needed:
        raise ConversionError(
            f"{folder}: takes {needed:,} more bytes, but its disk has {free:,} free"
        )


def free_bytes(folder: Path) -> int:
    """Of the disk that the folder is or will be on."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(there).free


class _Weights:
    """The threads that write all tasks which the journal does not name yet."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        descriptors: Mapping[str, int],
        progress: Progress | None,
    ) -> None:
        self._plan, self._journal, self._descriptors = plan, journal, descriptors
        self._progress = progress
        self._stop = Event()
        self._lock = Lock()
        self._done = 0

    def write(self) -> None:
        done = self._journal.done
        todo = [t for t in self._plan.tasks if any(o.name not in done for o in t.outputs)]
        total = sum(task.nbytes for task in self._plan.tasks)
        self._done = total - sum(task.nbytes for task in todo)
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="convert") as pool:
            futures = [pool.submit(self._write_task, task, total) for task in todo]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                # Also what an error cut short is worth keeping.
                self._journal.flush()

    def _write_task(self, task: Task, total: int) -> None:
        hashes = [sha256() for _ in task.outputs]
        places = [output.offset for output in task.outputs]
        files = [self._descriptors[output.file] for output in task.outputs]
        for start, stop in task.spans():
            if self._stop.is_set():
                return
            written = 0
            for i, data in enumerate(made(task, start, stop)):
                hashes[i].update(data)
                _write_all(files[i], data, places[i])
                places[i] += len(data)
                written += len(data)
            with self._lock:
                self._done += written
                if self._progress is not None:
                    self._progress(self._done, total)
        digests = {o.name: h.hexdigest() for o, h in zip(task.outputs, hashes, strict=True)}
        self._journal.add(digests, task.nbytes, set(files))


def made(task: Task, start: int, stop: int) -> Iterator[memoryview]:
    """The bytes of these rows, one after another for every output of the task."""
    rows = task.piece.read(start, stop)
    if task.outputs[0].name.endswith("_scales") and rows.size and rows.max() == NAN_SCALE:
        names = " or ".join(tensor.name for tensor in task.piece.inputs)
        raise CheckpointError(
            f"{task.piece.inputs[0].path}: tensor {names} has the scale 255 (NaN) in expert"
            f" {start + int(rows.argmax()) * (stop - start) // rows.size}; the highest is 254"
        )
    if task.spec is None:
        yield rows.data
        return
    for part in rules.quantized(task.spec, rows, task.piece.shape[1]):
        yield part.reshape(-1).view(np.uint8).data


def _forget_lost(plan: Plan, folder: Path, journal: Journal) -> None:
    """Someone may have deleted a file that the journal still speaks of."""
    lost = {
        file.name
        for file in plan.files
        if not (folder / file.name).exists() and not _partial(folder, file).exists()
    }
    outputs = (output for task in plan.tasks for output in task.outputs)
    journal.forget({output.name for output in outputs if output.file in lost})


def _opened(folder: Path, file: File) -> int:
    """A descriptor for a file's weights, its head written and its size set."""
    final, partial = folder / file.name, _partial(folder, file)
    path = final if final.exists() else partial
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if path is partial:
        _write_all(descriptor, memoryview(file.head), 0)
        os.ftruncate(descriptor, file.nbytes)
    return descriptor


def _partial(folder: Path, file: File) -> Path:
    return folder / f"{file.name}.partial"


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _check_unchanged(source: Source, plan: Plan, folder: Path, journal: Journal) -> None:
    """A source that changed while it was read may be half of each."""
    if plan.identity(source) != journal.identity:
        raise ConversionError(
            f"{source.name}: changed while it was converted; delete {folder} and begin once more"
        )


def _write_small_files(source: Source, plan: Plan, folder: Path, hashes: Mapping[str, str]) -> None:
    for path in plan.carried:
        _write_file(folder / path.name, path.read_bytes())
    for name, data in plan.texts.items():
        _write_file(folder / name, data)
    if plan.target == "mlx":
        _write_file(folder / MANIFEST, manifest(source, plan, hashes))


def _write_file(path: Path, data: bytes) -> None:
    """Whole, or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


@contextmanager
def _told(folder: Path, resume: str) -> Iterator[None]:
    """What the disk refuses, as one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConversionError(
                f"{folder}: the disk is full; what is written stays, and `{resume}` goes on"
                " when there is room"
            ) from error
        place = error.filename or folder
        raise ConversionError(f"{place}: cannot be written: {error.strerror}") from error
