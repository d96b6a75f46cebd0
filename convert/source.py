"""What is converted: a config, the pieces of every released tensor, and the files beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_mlx.checkpoint import INDEX, UNFINISHED
from gptoss_mlx.config import ModelConfig, QuantizationSpec
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.jsonfile import shown
from gptoss_mlx.shard import Tensor, read_shard

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
_CARRIED_LIMIT = 64 << 20


@dataclass(frozen=True)
class Release:
    """How the released files were cut: each file's header and the index, byte for byte."""

    headers: Mapping[str, str]
    index: str | None


@dataclass(frozen=True)
class Packed:
    """A matrix that the source holds quantized by MLX: weight, scales and, if affine, biases."""

    spec: QuantizationSpec
    parts: tuple[Tensor, ...]

    def unpacked(self) -> Piece:
        """The matrix in bfloat16, which is not the released one."""
        rows, words = self.parts[0].shape
        shape = rows, words * 32 // self.spec.bits
        return Piece("BF16", shape, self.parts, rules.dequantized(self.spec))


@dataclass(frozen=True)
class Source:
    """kind: of `sources/`. name: for people. paths: every file that is read.

    config: the content of a released config.json. verbatim: its bytes, where there is such a file.
    carried: files that come along as they are; written: contents of files that come along.
    packed: by module, what `pieces` would unpack. exact: whether every piece gives the released
    bytes.
    """

    kind: str
    name: str
    paths: tuple[Path, ...]
    config: Mapping[str, Any]
    pieces: Mapping[str, Piece]
    exact: bool
    verbatim: bytes | None = None
    packed: Mapping[str, Packed] = field(default_factory=dict)
    carried: tuple[Path, ...] = ()
    written: Mapping[str, bytes] = field(default_factory=dict)
    release: Release | None = None

    @property
    def model(self) -> ModelConfig:
        return ModelConfig.from_values(self.config, self.paths[0])


class Inputs:
    """Tensors of a foreign layout, taken by name and checked; what nobody takes is an error."""

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


def carried_files(folder: Path) -> tuple[Path, ...]:
    """The small files of a checkpoint's folder that are neither weights nor written anew."""
    own = {"config.json", INDEX, MANIFEST, UNFINISHED}
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.name not in own
        and not path.name.startswith(".")
        and path.suffix not in (".safetensors", ".gguf", ".partial")
        and path.stat().st_size <= _CARRIED_LIMIT
    )


def released_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as released: without what MLX's tools write about their quantization."""
    if "quantization" not in config:
        return dict(config)
    kept = {key: value for key, value in config.items() if key != "quantization"}
    return kept | {"quantization_config": RELEASED_QUANTIZATION}
