"""The Hugging Face release, or a folder that this converter wrote from any source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import JSON_LIMIT, parse_json, read_json
from gptoss_mlx.files.regular import is_named, open_regular, read_regular
from gptoss_mlx.models.checkpoint import INDEX, Checkpoint, is_plain_name

from ..piece import Piece
from ..source import MANIFEST, Packed, Release, Source, carried_files, released_config

_LENGTH_BYTES = 8


def matches(path: Path) -> bool:
    return is_named(path / "config.json")


def read(path: Path, exact: bool) -> Source:
    """The source at a path. Raises CheckpointError."""
    with Checkpoint.open(path) as checkpoint:
        tensors, quantization = dict(checkpoint.tensors), checkpoint.config.quantization
    packed: dict[str, Packed] = {}
    for name in [name for name in tensors if name.endswith(".scales")]:
        module = name.removesuffix(".scales")
        spec = None if quantization is None else quantization.of(module)
        assert spec is not None, "validated by Checkpoint.open"
        names = [f"{module}.{part}" for part in ("weight", "scales", "biases")]
        matrix = tuple(tensors.pop(name) for name in names if name in tensors)
        packed[module] = Packed(spec, matrix)
    pieces = {
        name: Piece(tensor.dtype, tensor.shape, (tensor,)) for name, tensor in tensors.items()
    }
    pieces |= {f"{module}.weight": matrix.unpacked() for module, matrix in packed.items()}
    files = sorted({tensor.path for tensor in checkpoint.tensors.values()})
    record = read_json(path / MANIFEST) if is_named(path / MANIFEST) else None
    return Source(
        kind="released" if record is None else "converted",
        name=path.resolve().name,
        paths=(path / "config.json", *files),
        config=released_config(read_json(path / "config.json")),
        verbatim=None if packed else _content(path / "config.json"),
        pieces=pieces,
        packed=packed,
        exact=not packed and (record is None or record.get("exact") is True),
        carried=carried_files(path),
        release=None
        if packed
        else _release(path, files)
        if record is None
        else _recorded(path / MANIFEST, record.get("release"), pieces),
    )


def _release(path: Path, files: list[Path]) -> Release:
    """Headers and index of the released files, which are these."""
    index = path / INDEX
    text = _content(index).decode("utf-8") if is_named(index) else None
    return Release({file.name: _header(file) for file in files}, text)


def _recorded(manifest: Path, record: Any, pieces: Mapping[str, Piece]) -> Release | None:
    """Headers and index of the released files, as a conversion's manifest records them.

    Raises CheckpointError.
    """
    if record is None:
        return None
    try:
        release = Release(record["headers"], record["index"])
        fits = _fits(release, pieces)
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError, CheckpointError):
        fits = False
    if not fits:
        raise CheckpointError(f"{manifest}: its release does not hold the tensors of config.json")
    return release


def _fits(release: Release, pieces: Mapping[str, Piece]) -> bool:
    """Whether files of plain names hold each tensor once and nothing else; may raise instead."""
    names: list[str] = []
    for file, text in release.headers.items():
        if not is_plain_name(file):
            return False
        header = parse_json(text.encode(), file)
        header.pop("__metadata__", None)
        begin = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape = pieces[name].dtype, list(pieces[name].shape)
            end = begin + pieces[name].nbytes
            if entry != {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}:
                return False
            names.append(name)
            begin = end
    whole = release.index is None or bool(release.index.encode())
    return whole and sorted(names) == sorted(pieces)


def _content(path: Path) -> bytes:
    """A small file that `Checkpoint.open` has read before."""
    return read_regular(path, JSON_LIMIT)


def _header(path: Path) -> str:
    """A safetensors header's text, which `Checkpoint.open` has checked."""
    with open(open_regular(path), "rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        return file.read(length).decode("utf-8")
