"""The embedding table: 1.2 GB in the released models, of which a token needs one row.

`FileEmbedding` reads a row when it is needed; the operating system's page cache keeps the rows in
use. `ResidentEmbedding` holds the table in memory, in the file's own format.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.cpu.quantized import dequantize
from gptoss_mlx.backends.cpu.weights import Loader, Operand, operand_of
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import NUMPY
from gptoss_mlx.models.checkpoint import Checkpoint

Array: TypeAlias = NDArray[Any]

MODULE = "model.embed_tokens"
FEW = 8  # rows that are read here; more are read by the reader's threads


class Embedding(Protocol):
    def __call__(self, ids: Sequence[int], out: Array, device: library.Device) -> None:
        """Write the rows of ids, float32 [tokens, hidden]. Raises IndexError for an id beyond the
        table."""


class FileEmbedding:
    """Rows read from the file. Raises CheckpointError if they cannot be."""

    def __init__(self, checkpoint: Checkpoint, loader: Loader, reader: FileReader) -> None:
        self.spec, self.reader = loader.spec(MODULE), reader
        self.tensors = {
            part: checkpoint.tensors[name]
            for part in ("weight", "scales", "biases")
            if (name := f"{MODULE}.{part}") in checkpoint.tensors
        }

    def __call__(self, ids: Sequence[int], out: Array, device: library.Device) -> None:
        parts = {
            part: np.empty((len(ids), *tensor.shape[1:]), NUMPY[tensor.dtype])
            for part, tensor in self.tensors.items()
        }
        reads = [
            (self.tensors[part][id], rows[i].data)
            for part, rows in parts.items()
            for i, id in enumerate(ids)
        ]
        if len(ids) <= FEW:
            self.reader.read_here(reads)
        else:
            self.reader.read(reads).wait()
        weight, scales, biases = (
            None if rows is None else rows.astype(np.float32) if rows.dtype == np.float16 else rows
            for rows in map(parts.get, ("weight", "scales", "biases"))
        )
        assert weight is not None
        if self.spec is not None and self.spec.mode not in library.FORMATS:
            assert scales is not None
            out[: len(ids)] = dequantize(weight.view(np.uint8), scales, self.spec)
            return
        _copy_rows(device, operand_of(weight, scales, biases, self.spec), range(len(ids)), out)


class ResidentEmbedding:
    """The whole table in memory."""

    def __init__(self, loader: Loader) -> None:
        self.table = loader.operand(MODULE)

    def __call__(self, ids: Sequence[int], out: Array, device: library.Device) -> None:
        _copy_rows(device, self.table, ids, out)


def _copy_rows(device: library.Device, table: Operand, ids: Sequence[int], out: Array) -> None:
    numbers = np.array(ids, np.int64)
    if numbers.min() < 0 or numbers.max() >= table.matrix.outputs:
        raise IndexError(f"a token is not within 0 to {table.matrix.outputs - 1}")
    call = library.RowsCall(table.matrix, len(ids), library.address(numbers), library.address(out))
    device.rows(device.handle, ctypes.byref(call))
