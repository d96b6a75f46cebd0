"""The embedding table: 1.2 GB in the released models, of which a token needs one row.

`FileEmbedding` reads a row when it is needed; the operating system's page cache keeps the rows in
use. It needs the token's id on the host, so a step is built first and its rows are read last
(`Rows`). `ResidentEmbedding` holds the table in memory and takes ids that the device may still
have to compute; it is used where there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx
import numpy as np

from gptoss_mlx.backends.mlx.ops.metal import DECODED
from gptoss_mlx.backends.mlx.weights import Loader
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import NUMPY
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.spec.config import QuantizationSpec

MODULE = "model.embed_tokens"


class Rows:
    """Rows of the table, filled in by `read`: before that, nothing that uses x may be evaluated.

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
    def __call__(self, *tokens: Sequence[int] | mx.array) -> Rows:
        """The rows of ids, which the device may still have to compute; one [tokens] after the
        other."""


class FileEmbedding:
    """Rows read from the file. Raises CheckpointError if they cannot be."""

    def __init__(self, checkpoint: Checkpoint, loader: Loader, reader: FileReader) -> None:
        self.dtype, self.reader = loader.dtype, reader
        self.spec = loader.spec(MODULE)
        self.tensors = {
            part: checkpoint.tensors[name]
            for part in ("weight", "scales", "biases")
            if (name := f"{MODULE}.{part}") in checkpoint.tensors
        }

    def __call__(self, *tokens: Sequence[int] | mx.array) -> Rows:
        count = sum(map(len, tokens))
        buffers = {
            part: mx.array(np.zeros((count, *tensor.shape[1:]), NUMPY[tensor.dtype]))
            for part, tensor in self.tensors.items()
        }
        rows = {part: _typed(buffer, self.tensors[part].dtype) for part, buffer in buffers.items()}

        def read() -> None:
            # Memory is unified: the rows are read straight into the arrays that are computed with.
            views = {part: np.asarray(buffer) for part, buffer in buffers.items()}
            ids = [id for some in tokens for id in np.asarray(some).tolist()]
            reads = [
                (self.tensors[part][id], view[i].data)
                for part, view in views.items()
                for i, id in enumerate(ids)
            ]
            if count <= DECODED:  # quicker than handing them to threads
                self.reader.read_here(reads)
            else:
                self.reader.read(reads).wait()

        return Rows(_dequantized(rows, self.spec, self.dtype), read)


class ResidentEmbedding:
    """The whole table in memory, in the file's own format."""

    def __init__(self, checkpoint: Checkpoint, loader: Loader) -> None:
        self.dtype = loader.dtype
        self.spec = loader.spec(MODULE)
        self.tables = {
            part: loader.raw(name, dtype=_WIRE[checkpoint.tensors[name].dtype])
            for part in ("weight", "scales", "biases")
            if (name := f"{MODULE}.{part}") in checkpoint.tensors
        }
        self.dtypes = {part: checkpoint.tensors[f"{MODULE}.{part}"].dtype for part in self.tables}

    def __call__(self, *tokens: Sequence[int] | mx.array) -> Rows:
        ids = [a if isinstance(a, mx.array) else mx.array(list(a), mx.uint32) for a in tokens]
        indices = ids[0] if len(ids) == 1 else mx.concatenate(ids)
        rows = {
            part: _typed(table[indices], self.dtypes[part]) for part, table in self.tables.items()
        }
        return Rows(_dequantized(rows, self.spec, self.dtype))


_WIRE = {"BF16": mx.uint16, "F16": mx.float16, "F32": mx.float32, "U8": mx.uint8, "U32": mx.uint32}


def _typed(rows: mx.array, dtype: str) -> mx.array:
    return rows.view(mx.bfloat16) if dtype == "BF16" else rows


def _dequantized(
    rows: dict[str, mx.array], spec: QuantizationSpec | None, dtype: mx.Dtype
) -> mx.array:
    if spec is None:
        return rows["weight"].astype(dtype)
    scales, biases = rows["scales"], rows.get("biases")
    if biases is not None:  # affine: MLX computes in the dtype of these, whatever it is to return
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
