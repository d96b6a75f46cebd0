"""The record that a finished conversion carries: where it came from, and a hash of every tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from gptoss_mlx import __version__
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import read_json, shown

from .plan import Plan
from .source import MANIFEST, Source

FORMAT = 2


def manifest(source: Source, plan: Plan, hashes: Mapping[str, str]) -> bytes:
    """The bytes of conversion.json. No time and no path is in it: the same conversion gives the
    same bytes.

    content: SHA-256 that names the source, whatever it is called. files: the bytes of every other
    file, with the SHA-256 of those that hold no tensors. tensors: SHA-256 by name.
    """
    return text(record(source, plan, hashes))


def text(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()


def record(source: Source, plan: Plan, hashes: Mapping[str, str]) -> dict[str, Any]:
    """The content of a manifest.

    exact: whether the tensors are the released ones; `--to release` refuses others.
    release: headers of the released files and their index, from which `--to release` writes them
    again byte for byte; null where something was quantized.
    """
    exact = source.exact and "quantization" not in plan.config
    kept = source.release is not None and "quantization" not in plan.config
    files: dict[str, Any] = {file.name: {"nbytes": file.nbytes} for file in plan.files}
    for name, data in plan.texts.items():
        files[name] = {"nbytes": len(data), "sha256": sha256(data).hexdigest()}
    return {
        "format": FORMAT,
        "tool": f"gptoss_mlx {__version__}",
        "source": {"kind": source.kind, "name": source.name, "content": source.content},
        "recipe": plan.recipe,
        "exact": exact,
        "files": files,
        "tensors": {output.name: hashes[output.name] for output in plan.outputs},
        "release": asdict(source.release) if kept and source.release is not None else None,
    }


def sizes(source: Source, plan: Plan) -> dict[str, int]:
    """Bytes of every file of the finished result."""
    found = {file.name: file.nbytes for file in plan.files}
    found |= {name: len(data) for name, data in plan.texts.items()}
    if plan.target == "mlx":
        unknown = dict.fromkeys((output.name for output in plan.outputs), "0" * 64)
        found[MANIFEST] = len(manifest(source, plan, unknown))
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """A folder's manifest. Raises CheckpointError if there is none or its format is another."""
    content = read_json(folder / MANIFEST)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / MANIFEST}: format is {shown(content.get('format'))}, not {FORMAT}"
        )
    if not isinstance(content.get("tensors"), dict):
        raise CheckpointError(
            f"{folder / MANIFEST}: tensors is {shown(content.get('tensors'))}, not an object"
        )
    return content
