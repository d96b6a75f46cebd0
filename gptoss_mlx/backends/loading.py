"""Weight loading: a pool of threads reads a checkpoint's files piece by piece, with progress.

A backend's `Loader` hands out arrays at once, allocated at their final size, and queues the reads
that fill them; `finish` waits for all. So memory peaks at the arrays and one buffer a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock, local
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.files.pool import Pool, Tasks
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import ITEM_BYTES, Tensor
from gptoss_mlx.models.checkpoint import Checkpoint, Progress
from gptoss_mlx.spec.config import QuantizationSpec

THREADS = max(2, min(8, os.cpu_count() or 4))

PIECE = 8 << 20  # bytes a thread reads at a time into the host's memory

Array: TypeAlias = NDArray[Any]

Fill: TypeAlias = Callable[[Tensor, slice], None]
"""Reads a piece of a tensor into a slice of an array's elements, on a thread of the pool."""


class WeightLoader:
    """The queued reads of one model's weights.

    Until `finish` has returned, what its arrays hold is undefined.
    Used as a context manager, it stops reading when the body ends or fails. total: bytes that will
    be read, for the progress. reader: by default one that opens the files anew.
    Raises CheckpointError if they cannot be opened.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        total: int = 0,
        progress: Progress | None = None,
        reader: FileReader | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.reader = reader or checkpoint.reader()
        self._total, self._done, self._progress = total, 0, progress
        self._pool = Pool(THREADS, "gptoss-load")
        self._reads: list[Tasks] = []
        self._lock = Lock()
        self.own = local()  # a loading thread's buffers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.close()

    def finish(self) -> None:
        """Wait until everything is read. Raises CheckpointError if a file cannot be read, has been
        changed since it was opened, or holds a float that is not finite.
        """
        for reads in self._reads:
            reads.wait()
        self._reads.clear()

    def spec(self, module: str) -> QuantizationSpec | None:
        """How the checkpoint has quantized a module; None if it has not."""
        quantization = self.checkpoint.config.quantization
        if quantization is None or f"{module}.scales" not in self.checkpoint.tensors:
            return None
        return quantization.of(module)

    def tensors(self, names: Sequence[str], rows: int | None = None) -> list[Tensor]:
        """The checkpoint's tensors of these names. rows: how many of the first axis."""
        tensors = [self.checkpoint.tensors[name] for name in names]
        return tensors if rows is None else [tensor.rows(0, rows) for tensor in tensors]

    def queue(self, tensors: Sequence[Tensor], fill: Fill, piece: int, unit: int = 0) -> None:
        """Queue the reads of tensors, one after the other in the array, at most `piece` bytes each.

        unit: bytes of an element of the array; by default, of an element of the tensor.
        """
        calls, at = [], 0
        for tensor in tensors:
            for part in _pieces(tensor, unit or ITEM_BYTES[tensor.dtype], piece):
                end = at + part.shape[0]
                calls.append(partial(self._read, part, slice(at, end), fill))
                at = end
        self._reads.append(self._pool.start(calls))

    def _read(self, piece: Tensor, place: slice, fill: Fill) -> None:
        fill(piece, place)
        with self._lock:
            self._done += piece.nbytes
            if self._progress is not None:
                self._progress(self._done, max(self._done, self._total))


class HostLoader(WeightLoader):
    """A `WeightLoader` of arrays in the host's memory.

    Where the file already has the wanted dtype, `pread` writes straight into the array. Where it
    has not, floats are widened to float32 piece by piece as they are read.
    """

    def read_bytes(self, tensors: Sequence[Tensor], out: Array) -> None:
        """Queue the reads of tensors into a contiguous array, as they are."""
        self.queue(tensors, partial(self._fill_bytes, out.reshape(-1)), PIECE, out.itemsize)

    def read_floats(self, tensors: Sequence[Tensor], out: Array) -> None:
        """Queue the reads of tensors into a contiguous array of float32."""
        self.queue(tensors, partial(self._fill_floats, out.reshape(-1)), PIECE)

    def map(self, tensor: Tensor) -> Array:
        """A tensor as it lies in its file, mapped, read-only. The loading threads read its pages
        once, so that they are in memory, and check its floats."""
        self.queue([tensor], self._skim, PIECE)
        return self.checkpoint.map(tensor)

    def _skim(self, piece: Tensor, place: slice) -> None:
        # Through `pread`: a file that has been cut short is an error there, and a signal in a map.
        self.reader.read_here([(piece, self._buffer()[: piece.nbytes].data)])

    def _buffer(self) -> Array:
        """PIECE bytes of this thread's own."""
        buffer: Array | None = getattr(self.own, "buffer", None)
        if buffer is None:
            buffer = self.own.buffer = np.empty(PIECE, np.uint8)
        return buffer

    def _fill_bytes(self, out: Array, piece: Tensor, place: slice) -> None:
        self.reader.read_here([(piece, out[place].view(np.uint8).data)])

    def _fill_floats(self, out: Array, piece: Tensor, place: slice) -> None:
        """Read bfloat16, float16 or float32 into float32."""
        if piece.dtype == "F32":
            return self._fill_bytes(out, piece, place)
        words = self._buffer()[: piece.nbytes].view(np.uint16)
        self._fill_bytes(words, piece, slice(None))
        if piece.dtype == "F16":
            np.copyto(out[place], words.view(np.float16))
        else:  # a bfloat16 is the upper half of the float32 of the same value
            bits = out[place].view(np.uint32)
            np.left_shift(words, 16, out=bits, dtype=np.uint32)
        return None


def _pieces(tensor: Tensor, unit: int, most: int) -> Iterator[Tensor]:
    """The tensor in byte ranges of at most `most` bytes, each whole in units of `unit` bytes."""
    step = most // unit * unit
    for start in range(0, tensor.nbytes, step):
        nbytes = min(step, tensor.nbytes - start)
        yield replace(tensor, shape=(nbytes // unit,), offset=tensor.offset + start, nbytes=nbytes)


def stacked(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """The shape of tensors stacked along their first axis."""
    return (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])


def named(modules: Collection[str], part: str) -> list[str]:
    return [f"{module}.{part}" for module in modules]


def bytes_to_read(checkpoint: Checkpoint, slots: int, without: str | None = None) -> int:
    """Bytes of a model's weights with `slots` experts a layer. without: prefix of names to skip."""
    return sum(
        (tensor.rows(0, slots) if name.endswith(("_blocks", "_scales")) else tensor).nbytes
        for name, tensor in checkpoint.tensors.items()
        if without is None or not name.startswith(without)
    )
