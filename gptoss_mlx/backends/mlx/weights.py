"""From the checkpoint's files into the memory the model computes on.

Every array is allocated once, at its final size, and filled by a pool of threads: with `pread`
where the file already holds what is wanted, and widened from bfloat16 to float32 in passing where
it does not. Nothing is converted as a whole, so loading peaks at the arrays themselves and one
small buffer a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from threading import Lock, local
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.linear import Linear
from gptoss_mlx.backends.mlx.ops.choice import Kernels
from gptoss_mlx.backends.mlx.ops.matrix import Matrix
from gptoss_mlx.files.pool import Pool, Tasks
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.models.checkpoint import Checkpoint, Progress, Tensor
from gptoss_mlx.spec.config import QuantizationSpec

PIECE = 8 << 20  # bytes a thread reads at a time
THREADS = max(2, min(8, os.cpu_count() or 4))

Array = NDArray[Any]
Read = Callable[[Tensor, Array], None]


class Loader:
    """Hands out arrays at once and fills them in the background; `finish` waits for all.

    Until `finish` has returned, the arrays' contents are undefined. Used as a context manager, it
    stops reading when the body fails. total: bytes that will be read, for the progress.
    kernels: what projections and experts compute with; by default the references.
    reader: by default one that opens the files anew. Raises CheckpointError if they cannot be.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: mx.Dtype,
        total: int = 0,
        progress: Progress | None = None,
        kernels: Kernels | None = None,
        reader: FileReader | None = None,
    ) -> None:
        self.checkpoint, self.dtype = checkpoint, dtype
        self.reader = reader or checkpoint.reader()
        self.kernels = kernels or Kernels()
        self._total, self._done = total, 0
        self._progress = progress
        self._pool = Pool(THREADS, "gptoss-load")
        self._reads: list[Tasks] = []
        self._scratch = local()
        self._lock = Lock()

    def __enter__(self) -> Loader:
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

    def dense(self, *names: str) -> mx.array:
        """The named tensors, stacked along their first axis, in the compute dtype."""
        tensors = [self.checkpoint.tensors[name] for name in names]
        if self.dtype == mx.bfloat16 and all(t.dtype == "BF16" for t in tensors):
            return self._raw(tensors, _stacked(tensors), mx.uint16).view(mx.bfloat16)
        out = _allocate(_stacked(tensors), mx.float32)
        self._queue(tensors, np.asarray(out), self._read_float)
        if self.dtype != mx.float32:
            self.finish()
            out = out.astype(self.dtype)
        return out

    def raw(self, *names: str, dtype: mx.Dtype, rows: int | None = None) -> mx.array:
        """The named tensors' bytes as they are, stacked, their last axis seen as `dtype`.

        rows: only so many of the first axis.
        """
        tensors = [self.checkpoint.tensors[name] for name in names]
        if rows is not None:
            tensors = [tensor.rows(0, rows) for tensor in tensors]
        *outer, last = _stacked(tensors)
        width = last * tensors[0].nbytes // (_count(tensors[0]) * dtype.size)
        return self._raw(tensors, (*outer, width), dtype)

    def linear(self, *modules: str, bias: bool = True) -> Linear:
        """One projection made of the named modules' outputs, in order; they must be alike."""
        return Linear(self.matrix(*modules), self.bias(*modules) if bias else None, self.kernels)

    def matrix(self, *modules: str) -> Matrix:
        """The named modules' matrices as one, their outputs in order; they must be alike."""
        spec = self.spec(modules[0])
        if spec is None:
            return Matrix(self.dense(*_named(modules, "weight")))
        weight = self.raw(*_named(modules, "weight"), dtype=mx.uint32)
        if spec.mode != "affine":
            scales = self.raw(*_named(modules, "scales"), dtype=mx.uint8)
            return Matrix(weight, scales, None, spec)
        scales, biases = (
            self.dense(*_named(modules, "scales")),
            self.dense(*_named(modules, "biases")),
        )
        return Matrix(weight, scales, biases, spec)

    def bias(self, *modules: str) -> mx.array:
        """The named modules' biases as one."""
        return self.dense(*_named(modules, "bias"))

    def alike(self, *modules: str) -> bool:
        """Whether the modules share one quantization, so that `linear` can join them."""
        return len({self.spec(module) for module in modules}) == 1

    def spec(self, module: str) -> QuantizationSpec | None:
        """How the checkpoint has quantized a module; None if it has not."""
        quantization = self.checkpoint.config.quantization
        if quantization is None or f"{module}.scales" not in self.checkpoint.tensors:
            return None
        return quantization.of(module)

    def _raw(self, tensors: list[Tensor], shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
        out = _allocate(shape, dtype)
        self._queue(tensors, np.asarray(out), self._read_bytes)
        return out

    def _queue(self, tensors: list[Tensor], out: Array, read: Read) -> None:
        """Queue the reads that fill `out` with the tensors, one behind the other."""
        flat = out.reshape(-1)
        widening = read != self._read_bytes
        calls, at = [], 0
        for tensor in tensors:
            unit = tensor.nbytes // _count(tensor) if widening else flat.itemsize
            for piece in _pieces(tensor, unit):
                count = piece.nbytes // unit
                calls.append(partial(self._read, read, piece, flat[at : at + count]))
                at += count
        self._reads.append(self._pool.start(calls))

    def _read(self, read: Read, piece: Tensor, out: Array) -> None:
        read(piece, out)
        with self._lock:
            self._done += piece.nbytes
            if self._progress is not None:
                self._progress(self._done, max(self._done, self._total))

    def _read_float(self, piece: Tensor, out: Array) -> None:
        """Read bfloat16, float16 or float32 into a float32 slice."""
        if piece.dtype == "F32":
            return self._read_bytes(piece, out)
        scratch = getattr(self._scratch, "words", None)
        if scratch is None:
            scratch = self._scratch.words = np.empty(PIECE // 2, np.uint16)
        words = scratch[: out.size]
        self._read_bytes(piece, words)
        if piece.dtype == "F16":
            np.copyto(out, words.view(np.float16))
        else:  # a bfloat16 is the upper half of the float32 of the same value
            bits = out.view(np.uint32)
            np.left_shift(words, 16, out=bits, dtype=np.uint32)
        return None

    def _read_bytes(self, piece: Tensor, out: Array) -> None:
        self.reader.read_here([(piece, out.view(np.uint8).data)])


def _named(modules: tuple[str, ...], part: str) -> list[str]:
    return [f"{module}.{part}" for module in modules]


def _stacked(tensors: list[Tensor]) -> tuple[int, ...]:
    return (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:])


def _count(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape))


def _allocate(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    out = mx.zeros(shape, dtype=dtype)
    mx.eval(out)
    return out


def _pieces(tensor: Tensor, unit: int) -> Iterator[Tensor]:
    """The tensor in byte ranges of at most PIECE bytes, each whole in units of `unit` bytes."""
    step = PIECE // unit * unit
    for start in range(0, tensor.nbytes, step):
        nbytes = min(step, tensor.nbytes - start)
        yield replace(tensor, shape=(nbytes // unit,), offset=tensor.offset + start, nbytes=nbytes)
