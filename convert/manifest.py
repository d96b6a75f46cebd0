"""The record that a finished conversion carries: where it came from, and a hash of every tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptoss_mlx import __version__
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.jsonfile import read_json, shown

from .plan import Plan
from .source import MANIFEST, Source

FORMAT = 1


def manifest(source: Source, plan: Plan, hashes: Mapping[str, str]) -> bytes:
    """No time and no path stands in it: the same conversion gives the same bytes.

    exact: whether the tensors are the released ones; `--to release` refuses others.
    tensors: SHA-256 by name. release: headers of the released files and their index, from which
    `--to release` writes them again byte for byte; null where something was quantized.
    """
    content = {
        "format": FORMAT,
        "tool": f"gptoss_mlx {__version__}",
        "source": {"kind": source.kind, "name": source.name},
        "recipe": plan.recipe,
        "exact": source.exact and "quantization" not in plan.config,
        "tensors": {output.name: hashes[output.name] for t in plan.tasks for output in t.outputs},
        "release": None
        if source.release is None or "quantization" in plan.config
        else asdict(source.release),
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises CheckpointError if there is none or it is of another format."""
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
