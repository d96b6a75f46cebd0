"""One safetensors file: its header checked completely, its tensors as byte ranges.

Nothing here reads tensor data except `read_into`. Every tensor `read_shard` returns has a known
dtype, a byte range of exactly its size inside the file, and shares no byte with another.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import JSON_LIMIT, parse_json, shown
from gptoss_mlx.files.regular import open_regular

HEADER_LIMIT = JSON_LIMIT
"""The longest header read, in bytes."""

_LENGTH_BYTES = 8
_MAX_RANK = 8
_MAX_SIZE = 1 << 63
"""No file has that many bytes, so no tensor has that many values."""
ITEM_BYTES = {
    "BF16": 2,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "U8": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "I8": 1,
    "I16": 2,
    "I32": 4,
    "I64": 8,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}
NUMPY = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "U8": "u1", "U32": "<u4"}
"""The numpy types of dtypes that are computed with; bfloat16, which numpy lacks, as its bits."""


@dataclass(frozen=True)
class Tensor:
    """A tensor's place on disk: `nbytes` bytes at `offset` from the start of `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    def __getitem__(self, i: int) -> Tensor:
        """The i-th slice along the first axis (one expert, one row): shape[1:], contiguous.

        Raises IndexError.
        """
        if not self.shape or not 0 <= i < self.shape[0]:
            raise IndexError(f"{self.name}: no slice {i} in shape {list(self.shape)}")
        return replace(self.rows(i, i + 1), shape=self.shape[1:])

    def rows(self, start: int, stop: int) -> Tensor:
        """Slices start to stop along the first axis, contiguous. Raises IndexError."""
        if not self.shape or not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"{self.name}: no rows {start} to {stop} in {list(self.shape)}")
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        shape = (stop - start, *self.shape[1:])
        offset, nbytes = self.offset + start * row, (stop - start) * row
        return replace(self, shape=shape, offset=offset, nbytes=nbytes)


def read_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, in file order. Raises CheckpointError."""
    header, data_start, data_bytes = _read_header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is {shown(metadata)}, not names with texts")
    tensors = [_tensor(path, name, entry, data_start, data_bytes) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_cover(path, tensors, data_start, data_bytes)
    return {tensor.name: tensor for tensor in tensors}


def header_bytes(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """The first bytes of a safetensors file of these (dtype, shape), in this order: the header and
    its length, padded to eight bytes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def read_into(tensor: Tensor, out: memoryview) -> None:
    """Read a tensor's bytes from its file into `out`, contiguous and of `tensor.nbytes` bytes.

    Safe to call from several threads at once. Raises CheckpointError if the file cannot be
    read or ends early, ValueError if `out` has another size.
    """
    if out.nbytes != tensor.nbytes:
        raise ValueError(f"{tensor.name}: {tensor.nbytes} bytes do not fit {out.nbytes}")
    view, done = out.cast("B"), 0
    try:
        with open(open_regular(tensor.path), "rb", buffering=0) as file:
            file.seek(tensor.offset)
            while done < tensor.nbytes:
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(
                        f"{tensor.path}: ends within tensor {shown(tensor.name)}:"
                        f" {done} of {tensor.nbytes} bytes at {tensor.offset} could be read"
                    )
                done += count
    except OSError as error:
        raise CheckpointError(f"{tensor.path}: cannot be read: {error.strerror}") from error


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, where the data starts, and the bytes of data that follow."""
    try:
        with open(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_LENGTH_BYTES)
            if len(prefix) < _LENGTH_BYTES:
                raise CheckpointError(
                    f"{path}: is {size} bytes long, too short for a safetensors file"
                )
            length = int.from_bytes(prefix, "little")
            if length > HEADER_LIMIT:
                raise CheckpointError(
                    f"{path}: header length {length} is beyond the limit of {HEADER_LIMIT} bytes"
                )
            if length > size - _LENGTH_BYTES:
                raise CheckpointError(
                    f"{path}: header length {length} is beyond the file's end at {size} bytes"
                )
            data = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    start = _LENGTH_BYTES + length
    return parse_json(data, f"{path}: header"), start, size - start


def _tensor(path: Path, name: str, entry: object, data_start: int, data_bytes: int) -> Tensor:
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: entry is {shown(entry)}, not an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where}: dtype {shown(dtype)} is unknown")
    if not _is_size_list(shape) or len(shape) > _MAX_RANK:
        raise CheckpointError(f"{where}: shape {shown(shape)} is no list of at most 8 sizes")
    if not _is_size_list(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets {shown(offsets)} are no [begin, end]")
    begin, end = offsets
    if end > data_bytes:
        raise CheckpointError(
            f"{where}: ends at byte {end} of the data, but the file holds {data_bytes};"
            " it is truncated or its header is wrong"
        )
    item = ITEM_BYTES[dtype]
    nbytes = math.prod(shape) * item
    if nbytes != end - begin:
        raise CheckpointError(
            f"{where}: {dtype} {shown(shape)} takes {shown(nbytes)} bytes,"
            f" but data_offsets give {end - begin}"
        )
    if begin % item:
        raise CheckpointError(
            f"{where}: begins at byte {begin} of the data, not a multiple of {item} for {dtype}"
        )
    return Tensor(name, dtype, tuple(shape), path, data_start + begin, nbytes)


def _is_size_list(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size < _MAX_SIZE for size in value
    )


def _check_cover(path: Path, tensors: list[Tensor], data_start: int, data_bytes: int) -> None:
    """Raises CheckpointError unless the tensors, in order, fill the data with neither overlap, gap
    nor rest."""
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            problem = "overlaps the one before" if tensor.offset < position else "leaves a gap"
            raise CheckpointError(
                f"{path}: tensor {shown(tensor.name)} begins at byte"
                f" {tensor.offset - data_start} of the data and {problem},"
                f" which ends at {position - data_start}"
            )
        position += tensor.nbytes
    if position != data_start + data_bytes:
        rest = data_start + data_bytes - position
        raise CheckpointError(f"{path}: {rest} bytes after the last tensor belong to none")
