"""The header of a GGUF file: its metadata and where each tensor lies, every length checked.

The `gguf` package reads headers too, but makes an array of every token of the vocabulary on the
way: 1 GB and several seconds for gpt-oss. What is not needed is stepped over here.
Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.jsonfile import shown

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_COUNT = 1 << 20  # of tensors or of metadata
_NUMBERS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))  # struct's codes by type
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in GGML's terms; shape outermost first, offset from the start of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> tuple[dict[str, Any], list[TensorInfo]]:
    """Metadata (arrays left out) and tensors. Raises CheckpointError."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{path}: is not a readable GGUF file: it is empty") from error


class _Reader:
    """A position in the mapped file that never leaves it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def read(self) -> tuple[dict[str, Any], list[TensorInfo]]:
        if self._data[:4] != _MAGIC:
            raise self._fail("it does not begin with GGUF")
        self._at = 4
        version = self._number("I")
        if version in (swapped << 24 for swapped in _VERSIONS):
            raise self._fail("its byte order is another one")
        if version not in _VERSIONS:
            raise self._fail(f"version {version} is none of {_VERSIONS}")
        tensors, fields = self._count("tensors"), self._count("metadata")
        metadata = {}
        for _ in range(fields):
            key = self._string()
            value = self._value(self._number("I"))
            if value is not None:
                metadata[key] = value
        raw = [self._raw_tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._fail(f"general.alignment is {shown(alignment)}")
        start = -(-self._at // alignment) * alignment
        return metadata, [self._tensor(start, *parts) for parts in raw]

    def _raw_tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        rank = self._number("I")
        if rank > 4:
            raise self._fail(f"tensor {shown(name)} has {rank} dimensions")
        shape = tuple(self._number("Q") for _ in range(rank))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _tensor(
        self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int
    ) -> TensorInfo:
        import gguf

        tensor = f"tensor {shown(name)}"
        try:
            known = gguf.GGMLQuantizationType(kind)
        except ValueError:
            raise self._fail(f"{tensor} is of GGML type {kind}, which is unknown") from None
        values, size = gguf.GGML_QUANT_SIZES[known]
        if not shape or shape[-1] % values:
            raise self._fail(f"{tensor} is {known.name}, which does not fit {list(shape)}")
        nbytes, begin = prod(shape) // values * size, start + offset
        if begin + nbytes > len(self._data):
            raise self._fail(
                f"{tensor} ends at byte {begin + nbytes}, but the file has {len(self._data)};"
                " it is truncated"
            )
        return TensorInfo(name, known.name, shape, begin, nbytes)

    def _value(self, kind: int) -> Any:
        """A number or a string; None for an array, which is stepped over."""
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._skip_array()
        if kind not in _NUMBERS:
            raise self._fail(f"metadata type {kind} is unknown")
        return self._number(_NUMBERS[kind])

    def _skip_array(self) -> None:
        kind, count = self._number("I"), self._number("Q")
        if kind in _NUMBERS:
            self._move(count * struct.calcsize(_NUMBERS[kind]))
            return
        if kind != _STRING or count > len(self._data):
            raise self._fail(f"it says it has an array of {count} values of type {kind}")
        for _ in range(count):
            self._move(self._number("Q"))

    def _string(self) -> str:
        length = self._number("Q")
        begin = self._at
        self._move(length)
        return self._data[begin : self._at].decode("utf-8", errors="replace")

    def _count(self, what: str) -> int:
        count: int = self._number("Q")
        if count > _MAX_COUNT:
            raise self._fail(f"it says it has {count} {what}")
        return count

    def _number(self, code: str) -> Any:
        begin = self._at
        self._move(struct.calcsize(code))
        return struct.unpack_from("<" + code, self._data, begin)[0]

    def _move(self, nbytes: int) -> None:
        self._at += nbytes
        if self._at > len(self._data):
            raise self._fail("it ends within its header; it is truncated")

    def _fail(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: is not a readable GGUF file: {problem}")
