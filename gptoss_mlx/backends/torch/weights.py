"""From the checkpoint's files onto the device, through a few pinned buffers.

Every tensor is allocated once, at its final size, and filled by a pool of threads: each reads a
piece into a buffer of its own, from where the device takes it, converting a float in passing. So
the host holds THREADS pieces, whatever the model's size, and reading and copying overlap.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import prod
from threading import Lock, local

import torch

from gptoss_mlx.backends.torch.current import launching_on
from gptoss_mlx.backends.torch.operands import Matrix
from gptoss_mlx.backends.torch.quantized import dequantize
from gptoss_mlx.files.pool import Pool, Tasks
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import ITEM_BYTES, Tensor
from gptoss_mlx.models.checkpoint import Checkpoint, Progress
from gptoss_mlx.spec.config import QuantizationSpec

PIECE = 16 << 20  # bytes a thread reads at a time
THREADS = max(2, min(8, os.cpu_count() or 4))

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "U8": torch.uint8}


class Loader:
    """Hands out tensors at once and fills them in the background; `finish` waits for all.

    Until `finish` has returned, their contents are undefined. Used as a context manager, it stops
    reading when the body fails. total: bytes that will be read, for the progress.
    reader: by default one that opens the files anew. Raises CheckpointError if they cannot be.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        total: int = 0,
        progress: Progress | None = None,
        reader: FileReader | None = None,
    ) -> None:
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self.reader = reader or checkpoint.reader()
        self._total, self._done, self._progress = total, 0, progress
        self._pool = Pool(THREADS, "gptoss-load")
        self._reads: list[Tasks] = []
        self._buffers = local()
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

    def dense(self, *names: str) -> torch.Tensor:
        """The named tensors, stacked along their first axis, in the compute dtype."""
        return self._filled([self.checkpoint.tensors[name] for name in names], self.dtype)

    def raw(self, *names: str, rows: int | None = None) -> torch.Tensor:
        """The named tensors' bytes, stacked: uint8, the last axis as many as it has bytes.

        rows: only so many of the first axis.
        """
        tensors = [self.checkpoint.tensors[name] for name in names]
        if rows is not None:
            tensors = [tensor.rows(0, rows) for tensor in tensors]
        return self._filled([_as_bytes(tensor) for tensor in tensors], torch.uint8)

    def matrix(self, *modules: str) -> Matrix:
        """The named modules' matrices as one, their outputs in order.

        In 8 bits where the checkpoint has them all alike so, else in the compute dtype.
        """
        specs = {self.spec(module) for module in modules}
        if specs == {None}:
            return Matrix(self.dense(*(f"{module}.weight" for module in modules)))
        spec = specs.pop()
        if not specs and spec is not None and (spec.bits, spec.mode) == (8, "affine"):
            codes = self.raw(*(f"{module}.weight" for module in modules))
            scales = self.dense(*(f"{module}.scales" for module in modules))
            biases = self.dense(*(f"{module}.biases" for module in modules))
            return Matrix(codes, scales, biases)
        parts = [self._widened(module) for module in modules]
        return Matrix(parts[0] if len(parts) == 1 else torch.cat(parts))

    def bias(self, *modules: str) -> torch.Tensor:
        """The named modules' biases as one."""
        return self.dense(*(f"{module}.bias" for module in modules))

    def spec(self, module: str) -> QuantizationSpec | None:
        """How the checkpoint has quantized a module; None if it has not."""
        quantization = self.checkpoint.config.quantization
        if quantization is None or f"{module}.scales" not in self.checkpoint.tensors:
            return None
        return quantization.of(module)

    def _widened(self, module: str) -> torch.Tensor:
        """A module's matrix in the compute dtype [outputs, inputs], however it is kept."""
        spec = self.spec(module)
        if spec is None:
            return self.dense(f"{module}.weight")
        codes = self.raw(f"{module}.weight")
        if spec.mode == "affine":
            scales, biases = self.dense(f"{module}.scales"), self.dense(f"{module}.biases")
        else:
            scales, biases = self.raw(f"{module}.scales"), None
        self.finish()
        return dequantize(codes, scales, biases, spec, self.dtype)

    def _filled(self, tensors: list[Tensor], dtype: torch.dtype) -> torch.Tensor:
        shape = (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:])
        out = torch.empty(shape, dtype=dtype, device=self.device)
        flat, at = out.view(-1), 0
        calls = []
        for tensor in tensors:
            for piece in _pieces(tensor):
                end = at + piece.shape[0]
                calls.append(partial(self._read, piece, flat[at:end]))
                at = end
        self._reads.append(self._pool.start(calls))
        return out

    def _read(self, piece: Tensor, out: torch.Tensor) -> None:
        """Read a piece and copy it to its place. Runs on the pool's threads."""
        with launching_on(self.device):
            self._copy(piece, out)
        with self._lock:
            self._done += piece.nbytes
            if self._progress is not None:
                self._progress(self._done, max(self._done, self._total))

    def _copy(self, piece: Tensor, out: torch.Tensor) -> None:
        buffer = getattr(self._buffers, "pinned", None)
        if buffer is None:
            pinned = self.device.type == "cuda"
            buffer = torch.empty(PIECE, dtype=torch.uint8, pin_memory=pinned)
            self._buffers.pinned = buffer
        held = buffer[: piece.nbytes]
        self.reader.read_here([(piece, held.numpy().data)])
        out.copy_(held.view(_DTYPES[piece.dtype]))


def _as_bytes(tensor: Tensor) -> Tensor:
    *outer, last = tensor.shape
    return replace(tensor, dtype="U8", shape=(*outer, last * ITEM_BYTES[tensor.dtype]))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor as flat byte ranges of at most PIECE bytes, each of whole numbers."""
    unit = ITEM_BYTES[tensor.dtype]
    assert tensor.nbytes == prod(tensor.shape) * unit
    for start in range(0, tensor.nbytes, PIECE):
        nbytes = min(PIECE, tensor.nbytes - start)
        yield replace(tensor, shape=(nbytes // unit,), offset=tensor.offset + start, nbytes=nbytes)
