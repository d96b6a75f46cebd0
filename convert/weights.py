"""Writes the weights of a plan: a few threads that each make, hash and write a span at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from threading import Event, Lock

import numpy as np

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.models.checkpoint import NAN_SCALE, Progress

from . import rules
from .folder import write_all
from .journal import Journal
from .plan import Output, Plan, Task

_WORKERS = 4
_READ_BYTES = 4 << 20


class Weights:
    """Writes the tensors of a plan into open files, holding a few spans in memory at most.

    A tensor that the journal records is kept if what is on the disk has its hash, else made again.
    """

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
        self._total = sum(task.nbytes for task in plan.tasks)
        self.written = 0
        """Bytes written."""

    def write(self) -> None:
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="convert") as pool:
            futures = [pool.submit(self._keep_or_make, task) for task in self._plan.tasks]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                # Tensors finished before an error are worth keeping too.
                self._journal.flush()

    def _keep_or_make(self, task: Task) -> None:
        if all(self._is_kept(output) for output in task.outputs):
            self._advance(task.nbytes)
        elif not self._stop.is_set():
            self._make(task)

    def _is_kept(self, output: Output) -> bool:
        """Whether the tensor on the disk is the one that the journal records."""
        recorded = self._journal.done.get(output.name)
        return recorded is not None and recorded == self._hash_there(output)

    def _hash_there(self, output: Output) -> str | None:
        descriptor, digest = self._descriptors[output.file], sha256()
        at, end = output.offset, output.offset + output.nbytes
        while at < end and not self._stop.is_set():
            data = os.pread(descriptor, min(_READ_BYTES, end - at), at)
            if not data:
                return None
            digest.update(data)
            at += len(data)
        return digest.hexdigest()

    def _make(self, task: Task) -> None:
        hashes = [sha256() for _ in task.outputs]
        places = [output.offset for output in task.outputs]
        files = [self._descriptors[output.file] for output in task.outputs]
        for start, stop in task.spans():
            if self._stop.is_set():
                return
            nbytes = 0
            for i, data in enumerate(made(task, start, stop)):
                hashes[i].update(data)
                write_all(files[i], data, places[i])
                places[i] += len(data)
                nbytes += len(data)
            self._advance(nbytes, nbytes)
        digests = {o.name: h.hexdigest() for o, h in zip(task.outputs, hashes, strict=True)}
        self._journal.add(digests, task.nbytes, set(files))

    def _advance(self, done: int, written: int = 0) -> None:
        with self._lock:
            self._done += done
            self.written += written
            if self._progress is not None:
                self._progress(self._done, self._total)


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
