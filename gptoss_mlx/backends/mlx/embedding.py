"""The embedding table: 1.2 GB in the released models, of which a token needs one row.

From the file, a row is read when it is asked for; the operating system keeps the pages in use. That
needs the token's id on the host, once a token: what can be prepared without it is prepared before
(`Rows`). Resident, the table lies in memory and the id may still be on its way: the choice where
there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx
import numpy as np

from gptoss_mlx.backends.mlx.weights import Loader
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import NUMPY
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.spec.config import QuantizationSpec

MODULE = "model.embed_tokens"


class Rows:
    """Rows of the table, not to be computed with before `read`.

    x [tokens, hidden] in the compute dtype.
    """

    def __init__(self, x: mx.array, read: Callable[[], None] | None = None) -> None:
        self.x, self._read = x, read

    def read(self) -> None:
        """Wait for the ids and read the rows, the first time. Raises CheckpointError."""
        if self._read is not None:
            self._read()
            self._read = None


class Embedding(Protocol):
    def __call__(self, ids: Sequence[int] | mx.array) -> Rows:
        """Of [tokens] ids, which may still be on their way."""


class FileEmbedding:
    """Rows read from the file. Raises CheckpointError if they cannot be."""

    def __init__(self, checkpoint: Checkpoint, loader: Loader, reader: FileReader) -> None:
        self.dtype, self.reader = loader.dtype, reader
        self.spec = loader.spec(MODULE)
        self.parts = {
            part: checkpoint.tensors[name]
            for part in ("weight", "scales", "biases")
            if (name := f"{MODULE}.{part}") in checkpoint.tensors
        }

    def __call__(self, ids: Sequence[int] | mx.array) -> Rows:
        tables = {
            part: mx.array(np.zeros((len(ids), *tensor.shape[1:]), NUMPY[tensor.dtype]))
            for part, tensor in self.parts.items()
        }
        arrays = {part: _typed(table, self.parts[part].dtype) for part, table in tables.items()}

        def read() -> None:
            # The device's memory is the host's: the rows go where the computation finds them.
            views = {part: np.asarray(table) for part, table in tables.items()}
            parts = [
                (self.parts[part][row], view[i].data)
                for part, view in views.items()
                for i, row in enumerate(np.asarray(ids).tolist())
            ]
            if len(ids) == 1:  # quicker than handing it to a thread
                self.reader.read_here(parts)
            else:
                self.reader.read(parts).wait()

        return Rows(_dequantized(arrays, self.spec, self.dtype), read)


class ResidentEmbedding:
    """The whole table in memory, as the file has it."""

    def __init__(self, checkpoint: Checkpoint, loader: Loader) -> None:
        self.dtype = loader.dtype
        self.spec = loader.spec(MODULE)
        self.parts = {
            part: loader.raw(name, dtype=_WIRE[checkpoint.tensors[name].dtype])
            for part in ("weight", "scales", "biases")
            if (name := f"{MODULE}.{part}") in checkpoint.tensors
        }
        self.dtypes = {part: checkpoint.tensors[f"{MODULE}.{part}"].dtype for part in self.parts}

    def __call__(self, ids: Sequence[int] | mx.array) -> Rows:
        rows = ids if isinstance(ids, mx.array) else mx.array(list(ids))
        arrays = {
            part: _typed(table[rows], self.dtypes[part]) for part, table in self.parts.items()
        }
        return Rows(_dequantized(arrays, self.spec, self.dtype))


_WIRE = {"BF16": mx.uint16, "F16": mx.float16, "F32": mx.float32, "U8": mx.uint8, "U32": mx.uint32}


def _typed(rows: mx.array, dtype: str) -> mx.array:
    return rows.view(mx.bfloat16) if dtype == "BF16" else rows


def _dequantized(
    rows: dict[str, mx.array], spec: QuantizationSpec | None, dtype: mx.Dtype
) -> mx.array:
    if spec is None:
        return rows["weight"].astype(dtype)
    scales, biases = rows["scales"], rows.get("biases")
    if biases is not None:  # affine: MLX computes in the type of these, whatever it is to return
        scales, biases = scales.astype(dtype), biases.astype(dtype)
    return mx.dequantize(
        rows["weight"],
        scales,
        biases,
        group_size=spec.group_size,
        bits=spec.bits,
        mode=spec.mode,
        dtype=dtype,
    )
