"""The plan of a conversion: files, the place of every tensor in them, and what each is made from.

Pure arithmetic on headers. The same content gives the same plan whatever the source was, so every
source of a model converts to the same weight files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

from gptoss_mlx import __version__
from gptoss_mlx.files.jsonfile import parse_json
from gptoss_mlx.files.shard import ITEM_BYTES, header_bytes
from gptoss_mlx.models.checkpoint import INDEX, SINGLE, expected_tensors
from gptoss_mlx.spec.config import ModelConfig, QuantizationSpec
from gptoss_mlx.spec.recipe import Recipe, quantization

from .piece import Piece
from .source import MANIFEST, Release, Source

MLX_SHARD_BYTES = 5 << 30
RELEASE_SHARD_BYTES = 4_800_000_000
"""About where the released shards are cut; only for sources that record no cut of their own."""

_CHUNK_BYTES = 16 << 20
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Output:
    """A tensor of the result: `nbytes` bytes at `offset` from the start of its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class File:
    """A safetensors file: its first bytes and its size."""

    name: str
    head: bytes
    nbytes: int


@dataclass(frozen=True)
class Task:
    """Tensors that are made together: one from its piece, or those of a quantized matrix."""

    piece: Piece
    spec: QuantizationSpec | None
    outputs: tuple[Output, ...]

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Rows to make at a time, start and stop."""
        rows = self.piece.shape[0]
        step = max(1, _CHUNK_BYTES * rows // max(1, self.piece.nbytes))
        for start in range(0, rows, step):
            yield start, min(rows, start + step)


@dataclass(frozen=True)
class Plan:
    """Everything that a conversion writes.

    files: safetensors. texts: all other files but the manifest, and their bytes. tasks: in the
    order of files.
    """

    target: str
    recipe: str
    config: Mapping[str, Any]
    files: tuple[File, ...]
    tasks: tuple[Task, ...]
    texts: Mapping[str, bytes]

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        return sum(file.nbytes for file in self.files)

    @property
    def names(self) -> set[str]:
        """Names of all files of the finished result."""
        manifest = {MANIFEST} if self.target == "mlx" else set()
        return {file.name for file in self.files} | set(self.texts) | manifest

    @property
    def outputs(self) -> Iterator[Output]:
        return (output for task in self.tasks for output in task.outputs)

    def identity(self, source: Source) -> str:
        """A hash of what has to stay the same for an interrupted conversion to be resumed."""
        digest = sha256(f"{__version__} {self.target} {self.recipe} {source.content}".encode())
        for file in self.files:
            digest.update(file.name.encode() + file.head)
        return digest.hexdigest()


def to_mlx(source: Source, recipe: Recipe, shard_bytes: int = MLX_SHARD_BYTES) -> Plan:
    """The plan for MLX format: experts as they are, every other matrix as the recipe says."""
    section = quantization(recipe, source.model)
    if section is None:
        config, text = dict(source.config), source.verbatim
    else:
        config = {**source.config, "quantization": section, "quantization_config": section}
        text = None
    names = _cut(_sizes(config, source.paths[0]), shard_bytes)
    count = len(names)
    files = {
        f"model-{i:05d}-of-{count:05d}.safetensors" if count > 1 else SINGLE: _words_first(tensors)
        for i, tensors in enumerate(names, 1)
    }
    return _plan("mlx", recipe.name, source, config, text, *_laid_out(files, {"format": "mlx"}))


def to_release(source: Source, shard_bytes: int = RELEASE_SHARD_BYTES) -> Plan:
    """The plan for the released layout, cut as the release was where the source knows that."""
    if source.release is not None:
        laid_out = _recorded(source.release)
    else:
        names = _cut(_sizes(source.config, source.paths[0]), shard_bytes)
        last = len(names) - 1  # the released files count from 0 up to the last one's number
        files = {f"model-{i:05d}-of-{last:05d}.safetensors": t for i, t in enumerate(names)}
        laid_out = _laid_out(files, {"format": "pt"})
    plan = _plan("release", "exact", source, source.config, source.verbatim, *laid_out)
    if source.release is None:
        return plan
    texts = {name: text for name, text in plan.texts.items() if name != INDEX}
    if source.release.index is not None:
        texts[INDEX] = source.release.index.encode()
    return replace(plan, texts=texts)


def _plan(
    target: str,
    recipe: str,
    source: Source,
    config: Mapping[str, Any],
    config_text: bytes | None,
    files: tuple[File, ...],
    outputs: tuple[Output, ...],
) -> Plan:
    model = ModelConfig.from_values(config, source.paths[0])
    total = sum(output.nbytes for output in outputs)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {output.name: output.file for output in outputs},
    }
    texts = {
        **source.carried,
        **source.written,
        INDEX: _json(index),
        "config.json": config_text if config_text is not None else _json(config),
    }
    tasks = tuple(_tasks(source, model, outputs))
    return Plan(target, recipe, config, files, tasks, texts)


def _tasks(source: Source, model: ModelConfig, outputs: tuple[Output, ...]) -> Iterator[Task]:
    by_name = {output.name: output for output in outputs}
    done: set[str] = set()
    for output in outputs:
        module, _, part = output.name.rpartition(".")
        matrix = f"{module}.scales" in by_name and part in ("weight", "scales", "biases")
        if not matrix:
            yield Task(source.pieces[output.name], None, (output,))
        elif module not in done:
            done.add(module)
            names = (f"{module}.{part}" for part in ("weight", "scales", "biases"))
            matrix_outputs = tuple(by_name[name] for name in names if name in by_name)
            assert model.quantization is not None
            spec = model.quantization.of(module)
            packed = source.packed.get(module)
            if packed is None or packed.spec != spec:
                yield Task(source.pieces[f"{module}.weight"], spec, matrix_outputs)
                continue
            for tensor, matrix_output in zip(packed.tensors, matrix_outputs, strict=True):
                yield Task(Piece(tensor.dtype, tensor.shape, (tensor,)), None, (matrix_output,))


Sizes = dict[str, tuple[str, tuple[int, ...]]]


def _sizes(config: Mapping[str, Any], path: Path) -> Sizes:
    return expected_tensors(ModelConfig.from_values(config, path), path)


def expected_nbytes(config: Mapping[str, Any], path: Path) -> int:
    """Bytes of all tensors that a config.json calls for; `path` opens messages."""
    sizes = _sizes(config, path).values()
    return sum(prod(shape) * ITEM_BYTES[dtype] for dtype, shape in sizes)


def _cut(tensors: Sizes, limit: int) -> list[Sizes]:
    """The tensors cut into files of at most `limit` bytes of tensors, in order."""
    files: list[Sizes] = [{}]
    used = 0
    for name, (dtype, shape) in tensors.items():
        nbytes = prod(shape) * ITEM_BYTES[dtype]
        if files[-1] and used + nbytes > limit:
            files.append({})
            used = 0
        files[-1][name] = dtype, shape
        used += nbytes
    return files


def _words_first(tensors: Sizes) -> Sizes:
    """U32 tensors first, so that tensors of an odd number of bytes leave none of them unaligned."""
    return dict(sorted(tensors.items(), key=lambda item: item[1][0] != "U32"))


def _laid_out(
    files: Mapping[str, Sizes], metadata: Mapping[str, str]
) -> tuple[tuple[File, ...], tuple[Output, ...]]:
    """Files of these tensors, and where each of them goes."""
    return _described({file: header_bytes(t, metadata) for file, t in files.items()})


def _recorded(release: Release) -> tuple[tuple[File, ...], tuple[Output, ...]]:
    """The files as their recorded headers say, byte for byte."""
    texts = {file: text.encode() for file, text in release.headers.items()}
    return _described(
        {file: len(text).to_bytes(_LENGTH_BYTES, "little") + text for file, text in texts.items()}
    )


def _described(heads: Mapping[str, bytes]) -> tuple[tuple[File, ...], tuple[Output, ...]]:
    """The files that begin with these bytes, and their tensors in the order of their bytes."""
    files: list[File] = []
    outputs: list[Output] = []
    for file, head in heads.items():
        header = parse_json(head[_LENGTH_BYTES:], f"{file}: header")
        header.pop("__metadata__", None)
        found = [
            Output(name, e["dtype"], tuple(e["shape"]), file, len(head) + e["data_offsets"][0])
            for name, e in header.items()
        ]
        nbytes = len(head) + sum(output.nbytes for output in found)
        files.append(File(file, head, nbytes))
        outputs += sorted(found, key=lambda output: output.offset)
    return tuple(files), tuple(outputs)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
