"""Ways to break a checkpoint's real files, one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"

Edit = Callable[[dict[str, Any]], None]


def write_shard(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """A safetensors file of (dtype, shape, data) by name."""
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, values) in tensors.items():
        offsets = [len(data), len(data) + len(values)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += values
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def edit_json(path: Path, edit: Edit) -> None:
    """Change a JSON file in place."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    edit(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


def header_of(shard: Path) -> dict[str, Any]:
    """A safetensors file's header."""
    data = shard.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert isinstance(header, dict)
    return header


def edit_header(shard: Path, edit: Edit) -> None:
    """Change a safetensors file's header, its data kept."""
    data = shard.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    edit(header)
    text = json.dumps(header).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])


def shard_with(folder: Path, tensor: str) -> Path:
    """The file that holds a tensor."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return folder / str(index["weight_map"][tensor])


def rename_tensor(folder: Path, old: str, new: str) -> None:
    """Give a tensor another name in its file and in the index."""
    edit_header(shard_with(folder, old), lambda header: _rename(header, old, new))
    edit_json(folder / INDEX, lambda index: _rename(index["weight_map"], old, new))


def _rename(mapping: dict[str, Any], old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)
