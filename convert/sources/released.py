"""The Hugging Face release, or a folder that this converter wrote from any source."""

from __future__ import annotations

from pathlib import Path

from gptoss_mlx.checkpoint import INDEX, Checkpoint
from gptoss_mlx.jsonfile import read_json

from ..piece import Piece
from ..source import MANIFEST, Packed, Release, Source, carried_files, released_config

_LENGTH_BYTES = 8


def matches(path: Path) -> bool:
    return (path / "config.json").is_file()


def read(path: Path, exact: bool) -> Source:
    """Raises CheckpointError."""
    with Checkpoint.open(path) as checkpoint:
        tensors, quantization = dict(checkpoint.tensors), checkpoint.config.quantization
    packed: dict[str, Packed] = {}
    for name in [name for name in tensors if name.endswith(".scales")]:
        module = name.removesuffix(".scales")
        spec = None if quantization is None else quantization.of(module)
        assert spec is not None, "validated by Checkpoint.open"
        names = [f"{module}.{part}" for part in ("weight", "scales", "biases")]
        parts = tuple(tensors.pop(name) for name in names if name in tensors)
        packed[module] = Packed(spec, parts)
    pieces = {
        name: Piece(tensor.dtype, tensor.shape, (tensor,)) for name, tensor in tensors.items()
    }
    pieces |= {f"{module}.weight": matrix.unpacked() for module, matrix in packed.items()}
    files = sorted({tensor.path for tensor in checkpoint.tensors.values()})
    return Source(
        kind="converted" if (path / MANIFEST).exists() else "released",
        name=path.resolve().name,
        paths=(path / "config.json", *files),
        config=released_config(read_json(path / "config.json")),
        verbatim=None if packed else (path / "config.json").read_bytes(),
        pieces=pieces,
        packed=packed,
        exact=not packed,
        carried=carried_files(path),
        release=None if packed else _release(path, files),
    )


def _release(path: Path, files: list[Path]) -> Release | None:
    """The cut of the released files: these, or those that the manifest of a conversion records."""
    if (path / MANIFEST).exists():
        recorded = read_json(path / MANIFEST).get("release")
        return None if recorded is None else Release(recorded["headers"], recorded["index"])
    index = path / INDEX
    text = index.read_text(encoding="utf-8") if index.exists() else None
    return Release({file.name: _header(file) for file in files}, text)


def _header(path: Path) -> str:
    """A safetensors header's text, which `Checkpoint.open` has checked."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        return file.read(length).decode("utf-8")
