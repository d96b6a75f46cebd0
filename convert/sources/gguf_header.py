"""The header of a GGUF file: its metadata and where each tensor lies, every length checked.

The `gguf` package reads headers too, but makes an array of every token of the vocabulary on the
way: 1 GB and several seconds for gpt-oss. What is not needed is skipped here.
Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.files.regular import open_regular

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_COUNT = 1 << 16
"""The most tensors, and the most metadata; gpt-oss-120b's files have 687 and about 40."""
_MAX_STRINGS = 1 << 21
"""The most strings in arrays, which are skipped one by one; gpt-oss's vocabulary with its merges
has 647,000."""
_MAX_STRING = 1 << 16  # bytes of a name (GGUF's own limit for keys), or of a text that is kept
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
        with open(open_regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # an empty file cannot be mapped
                raise CheckpointError(f"{path}: is not a readable GGUF file: it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).read()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


class _Reader:
    """Reads from a position in the mapped file, never beyond its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0
        self._strings = 0

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
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            key = self._name()
            if key in metadata:
                raise self._fail(f"the name {shown(key)} occurs twice")
            metadata[key] = self._value(self._number("I"))
        raw = [self._raw_tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not _is_power_of_two(alignment):
            raise self._fail(f"general.alignment is {shown(alignment)}, not a power of two")
        start = -(-self._at // alignment) * alignment
        found = [self._tensor(start, alignment, *entry) for entry in raw]
        self._check_apart(found)
        if len({tensor.name for tensor in found}) < len(found):
            raise self._fail("it names a tensor twice")
        return {key: value for key, value in metadata.items() if value is not None}, found

    def _raw_tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name()
        rank = self._number("I")
        if rank > 4:
            raise self._fail(f"tensor {shown(name)} has {rank} dimensions")
        shape = tuple(self._number("Q") for _ in range(rank))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _tensor(
        self,
        start: int,
        alignment: int,
        name: str,
        shape: tuple[int, ...],
        kind: int,
        offset: int,
    ) -> TensorInfo:
        import gguf

        tensor = f"tensor {shown(name)}"
        try:
            known = gguf.GGMLQuantizationType(kind)
        except ValueError:
            raise self._fail(f"{tensor} is of GGML type {kind}, which is unknown") from None
        values, size = gguf.GGML_QUANT_SIZES[known]
        if not shape or shape[-1] % values:
            raise self._fail(f"{tensor} is {known.name}, which does not fit {shown(list(shape))}")
        if offset % alignment:
            raise self._fail(f"{tensor} begins at {offset}, not a multiple of {alignment}")
        nbytes, begin = prod(shape) // values * size, start + offset
        end = begin + nbytes
        if end > len(self._data):
            raise self._fail(
                f"{tensor} ends at byte {end}, but the file has {len(self._data)}; it is truncated"
            )
        return TensorInfo(name, known.name, shape, begin, nbytes)

    def _check_apart(self, tensors: Iterable[TensorInfo]) -> None:
        """Raises CheckpointError if tensors overlap; between them there may be bytes for
        alignment."""
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
            if tensor.offset < end:
                raise self._fail(
                    f"tensor {shown(tensor.name)} begins at byte {tensor.offset} and overlaps the"
                    f" one before, which ends at {end}"
                )
            end = tensor.offset + tensor.nbytes

    def _value(self, kind: int) -> Any:
        """A number or a short string; None for arrays and long strings, which are skipped."""
        if kind == _STRING:
            data = self._string()
            return None if data is None else data.decode("utf-8", errors="replace")
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
        self._strings += count
        if kind != _STRING or self._strings > _MAX_STRINGS:
            raise self._fail(f"it says it has an array of {count} values of type {kind}")
        for _ in range(count):
            self._move(self._number("Q"))

    def _string(self) -> bytes | None:
        length = self._number("Q")
        begin = self._at
        self._move(length)
        return self._data[begin : self._at] if length <= _MAX_STRING else None

    def _name(self) -> str:
        data = self._string()
        try:
            if data is not None:
                return data.decode("utf-8")
        except UnicodeDecodeError:
            pass
        raise self._fail(f"a name is no UTF-8 text of at most {_MAX_STRING} bytes")

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


def _is_power_of_two(number: int) -> bool:
    return 0 < number <= _MAX_ALIGNMENT and not number & (number - 1)
