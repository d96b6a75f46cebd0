"""The source of a conversion: a config, the pieces of every released tensor, and other files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.files.regular import read_regular
from gptoss_mlx.files.shard import Tensor, read_into, read_shard
from gptoss_mlx.spec.config import ModelConfig, QuantizationSpec

from . import rules
from .piece import Piece

MANIFEST = "conversion.json"
RELEASED_QUANTIZATION = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
_CARRIED = {
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
}
_LEGAL = re.compile(r"(LICENSE|NOTICE|USAGE)[\w-]*(\.md|\.txt)?", re.ASCII)
_CARRIED_LIMIT = 64 << 20  # bytes of all of them; gpt-oss's tokenizer.json takes 28 MB
_SAMPLE_BYTES = 64 << 10


@dataclass(frozen=True)
class Release:
    """How the released files were cut: each file's header and the index, byte for byte."""

    headers: Mapping[str, str]
    index: str | None


@dataclass(frozen=True)
class Packed:
    """A matrix that the source holds quantized by MLX: weight, scales and, if affine, biases."""

    spec: QuantizationSpec
    tensors: tuple[Tensor, ...]

    def unpacked(self) -> Piece:
        """The matrix dequantized to bfloat16; its values are not the released ones."""
        rows, words = self.tensors[0].shape
        shape = rows, words * 32 // self.spec.bits
        return Piece("BF16", shape, self.tensors, rules.dequantized(self.spec))


@dataclass(frozen=True)
class Source:
    """Weights to be converted, in some layout.

    kind: which layout, of those in `sources/`. name: for people. paths: every file that is read.
    config: the content of a released config.json. verbatim: its bytes, where there is such a file.
    carried: files that are copied as they are, by name; written: files made for the result.
    packed: by module, quantized matrices that `pieces` would dequantize. exact: whether every piece
    gives the released bytes.
    """

    kind: str
    name: str
    paths: tuple[Path, ...]
    config: Mapping[str, Any]
    pieces: Mapping[str, Piece]
    exact: bool
    verbatim: bytes | None = None
    packed: Mapping[str, Packed] = field(default_factory=dict)
    carried: Mapping[str, bytes] = field(default_factory=dict)
    written: Mapping[str, bytes] = field(default_factory=dict)
    release: Release | None = None

    @property
    def model(self) -> ModelConfig:
        return ModelConfig.from_values(self.config, self.paths[0])

    @cached_property
    def content(self) -> str:
        """SHA-256 that names the weights: every tensor's dtype, shape and a sample of its bytes.

        64 KiB from the middle of each tensor (30 MB of gpt-oss-20b) tell models and their
        finetunes apart in a moment; `verify` compares every byte. Raises CheckpointError.
        """
        digest = sha256(self.kind.encode())
        for name, piece in sorted(self.pieces.items()):
            digest.update(f"{name} {piece.dtype} {piece.shape}".encode())
            for tensor in piece.inputs:
                digest.update(_sample(tensor))
        return digest.hexdigest()

    @cached_property
    def stamp(self) -> str:
        """`stamp_now` when this was first asked for, which is when the source was opened."""
        return self.stamp_now()

    def stamp_now(self) -> str:
        """SHA-256 of every file's name, size and times. Raises CheckpointError.

        A program can set a file's time of modification back, but not the time (ctime) at which
        the system noted a change of any kind.
        """
        digest = sha256()
        for path in self.paths:
            try:
                status = path.stat()
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
            times = status.st_mtime_ns, status.st_ctime_ns
            digest.update(os.fsencode(f"{path.name} {status.st_size} {times}"))
        return digest.hexdigest()


class Inputs:
    """Tensors of a foreign layout, taken by name and checked; one that is not taken is an error."""

    def __init__(self, where: Path, tensors: Mapping[str, Tensor]) -> None:
        self._where, self._tensors = where, tensors
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """Raises CheckpointError if it is missing or has another dtype or shape."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self._where}: has no tensor {name}")
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            raise CheckpointError(
                f"{tensor.path}: tensor {name} is {tensor.dtype} {shown(list(tensor.shape))},"
                f" but the config calls for {dtype} {list(shape)}"
            )
        self._taken.add(name)
        return tensor

    def check_all_taken(self) -> None:
        left = sorted(set(self._tensors) - self._taken)
        if left:
            tensor = self._tensors[left[0]]
            raise CheckpointError(
                f"{tensor.path}: holds tensor {shown(left[0])}, which the config does not call for"
            )


def read_files(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of several safetensors files. Raises CheckpointError."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_shard(path).items():
            if name in tensors:
                raise CheckpointError(
                    f"{path}: holds tensor {shown(name)}, which {tensors[name].path.name} holds too"
                )
            tensors[name] = tensor
    return tensors


def carried_files(folder: Path) -> dict[str, bytes]:
    """Files beside the weights that a result needs or its licence asks for, by name.

    Raises CheckpointError for one that is no regular file, lies outside the model's folder, or is
    larger than all of them may be.
    """
    found: dict[str, bytes] = {}
    left = _CARRIED_LIMIT
    for path in sorted(folder.iterdir()):
        if path.name not in _CARRIED and not _LEGAL.fullmatch(path.name):
            continue
        try:
            place = path.resolve(strict=True)
            if not any(home in place.parents for home in _homes(folder)):
                raise CheckpointError(
                    f"{path}: is a link to {shown(str(place))}, outside the model's folder;"
                    " put the file itself there"
                )
            found[path.name] = read_regular(place, left)
        except (OSError, RuntimeError) as error:  # what a circle of links is, up to Python 3.12
            reason = getattr(error, "strerror", None) or "is a link to itself"
            raise CheckpointError(f"{path}: cannot be read: {reason}") from error
        left -= len(found[path.name])
    return found


def _homes(folder: Path) -> Iterator[Path]:
    """Where a model's files may lie: its folder, and for one in Hugging Face's cache its blobs."""
    home = folder.resolve()
    yield home
    if home.parent.name == "snapshots":
        yield home.parent.parent / "blobs"


def _sample(tensor: Tensor) -> bytes:
    """At most 64 KiB from the middle of a tensor."""
    nbytes = min(tensor.nbytes, _SAMPLE_BYTES)
    offset = tensor.offset + (tensor.nbytes - nbytes) // 2
    data = bytearray(nbytes)
    read_into(replace(tensor, offset=offset, nbytes=nbytes), memoryview(data))
    return bytes(data)


def released_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as released: without what MLX's tools write about their quantization."""
    if "quantization" not in config:
        return dict(config)
    kept = {key: value for key, value in config.items() if key != "quantization"}
    return kept | {"quantization_config": RELEASED_QUANTIZATION}
