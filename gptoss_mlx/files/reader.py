"""Reads weights from a checkpoint's files, on threads of its own or on the caller's.

The files stay open, so moving or replacing them changes nothing. A file that is written to or
truncated while it is in use is detected, and none of its bytes is then used as a weight. Floats are
checked as they are read: infinity and NaN are errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.pool import Call, Pool, Tasks
from gptoss_mlx.files.regular import open_regular
from gptoss_mlx.files.shard import Tensor

PIECE = 2 << 20  # bytes a thread reads at a time: several threads share an expert's matrix
THREADS = 8

_INFINITY = {"BF16": (2, 0x7F80), "F16": (2, 0x7C00), "F32": (4, 0x7F800000)}
"""By float dtype: bytes of a value, and the bits of infinity; without the sign bit, NaN has larger
ones."""


class _OpenFile:
    """A regular file, closed when no read holds it any more."""

    descriptor = -1

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = open_regular(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        self.stamp = self.now()

    def now(self) -> tuple[int, int]:
        """Its size in bytes, and its modification time in nanoseconds."""
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class FileReader:
    """Reads byte ranges of the given files. Raises CheckpointError if one cannot be opened."""

    def __init__(self, paths: Iterable[Path], threads: int = THREADS) -> None:
        self._files = {path: _OpenFile(path) for path in paths}
        self._threads = threads
        self._pool: Pool | None = None  # made by the first `read`

    def read(self, targets: Iterable[tuple[Tensor, memoryview]]) -> Tasks:
        """Start reading each tensor into its target: the memory beside it, of the same size.

        Nobody else may touch a target until its read has ended. Waiting for the tasks may raise
        CheckpointError. Raises ValueError if a target has another size.
        """
        pieces = list(self._pieces(targets))
        if self._pool is None:
            self._pool = Pool(self._threads, "gptoss-read")
        return self._pool.start(pieces)

    def check_unchanged(self) -> None:
        """Raises CheckpointError if a file has been written to or cut short since it was opened."""
        for file in self._files.values():
            if file.now() != file.stamp:
                raise CheckpointError(f"{file.path}: was changed while in use; load it again")

    def stop(self) -> None:
        """Call off all reads, and return when no thread writes any more. New reads can be started
        then."""
        if self._pool is not None:
            self._pool.stop()

    def read_here(self, targets: Iterable[tuple[Tensor, memoryview]]) -> None:
        """As `read`, but on the caller's thread and done on return. Raises CheckpointError."""
        for read in self._pieces(targets):
            read()

    def _pieces(self, targets: Iterable[tuple[Tensor, memoryview]]) -> Iterator[Call]:
        for tensor, out in targets:
            if out.nbytes != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {tensor.nbytes} bytes do not fit {out.nbytes}")
            file, view = self._files[tensor.path], out.cast("B")
            for start in range(0, tensor.nbytes, PIECE):
                piece = view[start : start + PIECE]
                yield partial(_read, file, tensor, tensor.offset + start, piece)


def _read(file: _OpenFile, tensor: Tensor, offset: int, out: memoryview) -> None:
    """Bytes of a tensor from `offset` in its file. Raises CheckpointError."""
    _pread(file, offset, out)
    _check_numbers(tensor, offset, out)


def _pread(file: _OpenFile, offset: int, out: memoryview) -> None:
    done = 0
    try:
        while done < out.nbytes:
            count = os.preadv(file.descriptor, [out[done:]], offset + done)
            if count == 0:
                raise CheckpointError(f"{file.path}: was cut short while in use; load it again")
            done += count
        stamp = file.now()
    except OSError as error:
        raise CheckpointError(f"{file.path}: cannot be read: {error.strerror}") from error
    if stamp != file.stamp:
        raise CheckpointError(f"{file.path}: was changed while in use; load it again")


def _check_numbers(tensor: Tensor, offset: int, values: memoryview) -> None:
    """Raises CheckpointError if one of a float tensor's values is infinite or NaN."""
    if tensor.dtype not in _INFINITY:
        return
    size, infinity = _INFINITY[tensor.dtype]
    signed, unsigned = (np.frombuffer(values, f"<{kind}{size}") for kind in "iu")
    sign = 1 << 8 * size - 1
    # As signed integers negative values are the smallest, as unsigned the largest: two maxima check
    # both signs without a copy.
    if not values.nbytes or (signed.max() < infinity and unsigned.max() < sign + infinity):
        return
    at = int(np.argmax(unsigned & sign - 1 >= infinity))
    found = "infinite" if unsigned[at] & sign - 1 == infinity else "no number (NaN)"
    raise CheckpointError(
        f"{tensor.path}: tensor {tensor.name} holds a value that is {found}, at byte"
        f" {offset + at * size}; weights are finite"
    )
