"""Reads weights from a checkpoint's files while the model runs, on threads of its own.

The files stay open, so moving or replacing them changes nothing; one that is written to or cut
short while it is in use is noticed, and no byte of it is then taken for a weight.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.regular import open_regular
from gptoss_mlx.shard import Tensor

PIECE = 2 << 20  # bytes a thread reads at a time: several threads share an expert's matrix
THREADS = 8


@dataclass(frozen=True)
class _OpenFile:
    path: Path
    descriptor: int
    size: int
    changed: int  # nanoseconds


class Load:
    """Reads under way into memory that nobody else touches until they have ended."""

    def __init__(self, reads: list[Future[None]]) -> None:
        self._reads = reads

    def wait(self) -> None:
        """Until all is read. Raises CheckpointError if something cannot be."""
        self._end()
        for read in self._reads:
            read.result()

    def succeeded(self) -> bool:
        """Whether all has been read already."""
        return all(r.done() and not r.cancelled() and r.exception() is None for r in self._reads)

    def failed(self) -> bool:
        """Whether something could not be read, as far as is known already."""
        return any(r.done() and (r.cancelled() or r.exception() is not None) for r in self._reads)

    def abandon(self) -> bool:
        """Start no more reads and wait for those running; True if all had been read after all."""
        for read in self._reads:
            read.cancel()
        self._end()
        return self.succeeded()

    def _end(self) -> None:
        """Until no thread writes any more.

        Not `concurrent.futures.wait`: a read that its pool cancelled at shutdown never counts as
        done there, and the wait would not end.
        """
        for read in self._reads:
            if not read.cancelled():
                with suppress(CancelledError):  # between the two lines
                    read.exception()


class FileReader:
    """Reads byte ranges of the given files. Raises CheckpointError if one cannot be opened."""

    def __init__(self, paths: Iterable[Path], threads: int = THREADS) -> None:
        self._files = {path: _opened(path) for path in paths}
        self._threads = threads
        self._pool = self._new_pool()

    def read(self, parts: Iterable[tuple[Tensor, memoryview]]) -> Load:
        """Begin to read each tensor's bytes into the memory beside it, of the same size.

        Raises ValueError if it has another.
        """
        return Load([self._pool.submit(_pread, *piece) for piece in self._pieces(parts)])

    def stop(self) -> None:
        """Let go of all reads, and return when no thread writes any more. Reads can go on then."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._new_pool()

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="gptoss-read")

    def read_here(self, parts: Iterable[tuple[Tensor, memoryview]]) -> None:
        """The same on the caller's thread, done on return. Raises CheckpointError."""
        for piece in self._pieces(parts):
            _pread(*piece)

    def _pieces(
        self, parts: Iterable[tuple[Tensor, memoryview]]
    ) -> Iterator[tuple[_OpenFile, int, memoryview]]:
        for tensor, out in parts:
            if out.nbytes != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {tensor.nbytes} bytes do not fit {out.nbytes}")
            file, view = self._files[tensor.path], out.cast("B")
            for start in range(0, tensor.nbytes, PIECE):
                yield file, tensor.offset + start, view[start : start + PIECE]


def _opened(path: Path) -> _OpenFile:
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
    status = os.fstat(descriptor)
    file = _OpenFile(path, descriptor, status.st_size, status.st_mtime_ns)
    weakref.finalize(file, os.close, descriptor)  # when no read holds it any more
    return file


def _pread(file: _OpenFile, offset: int, out: memoryview) -> None:
    done = 0
    try:
        while done < out.nbytes:
            count = os.preadv(file.descriptor, [out[done:]], offset + done)
            if count == 0:
                raise CheckpointError(f"{file.path}: was cut short while in use; load it again")
            done += count
        status = os.fstat(file.descriptor)
    except OSError as error:
        raise CheckpointError(f"{file.path}: cannot be read: {error.strerror}") from error
    if (status.st_size, status.st_mtime_ns) != (file.size, file.changed):
        raise CheckpointError(f"{file.path}: was changed while in use; load it again")
