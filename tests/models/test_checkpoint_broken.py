"""Broken checkpoints: each is refused in one line, before anything large is allocated."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.shard import HEADER_LIMIT
from gptoss_mlx.models.checkpoint import Checkpoint
from tests.support.broken import INDEX, edit_header, edit_json, rename_tensor, shard_with

NORM = "model.norm.weight"
SINKS = "model.layers.0.self_attn.sinks"
ROUTER = "model.layers.0.mlp.router.weight"
BYTES_LIMIT = 512 * 1024
"""Bytes a refused checkpoint may take; its embedding alone has a million."""


Break = Callable[[Path], None]


def _entry(tensor: str, **changes: Any) -> Break:
    def edit(folder: Path) -> None:
        edit_header(shard_with(folder, tensor), lambda header: header[tensor].update(changes))

    return edit


def _length(value: int) -> Break:
    def edit(folder: Path) -> None:
        with shard_with(folder, NORM).open("r+b") as file:
            file.write(value.to_bytes(8, "little"))

    return edit


def _header_text(text: bytes) -> Break:
    def edit(folder: Path) -> None:
        shard_with(folder, NORM).write_bytes(len(text).to_bytes(8, "little") + text)

    return edit


def _cut(size: int) -> Break:
    """Cut from the end if negative."""

    def edit(folder: Path) -> None:
        path = shard_with(folder, NORM)
        with path.open("r+b") as file:
            file.truncate(size if size >= 0 else path.stat().st_size + size)

    return edit


def _index(edit: Callable[[dict[str, Any]], Any]) -> Break:
    return lambda folder: edit_json(folder / INDEX, lambda index: edit(index) and None)


def _place(name: str, shard: object) -> Break:
    return _index(lambda index: index["weight_map"].update({name: shard}))


def _config(**changes: Any) -> Break:
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(changes))


def _append(folder: Path) -> None:
    with shard_with(folder, NORM).open("ab") as file:
        file.write(b"tail")


def _shift(tensor: str, bytes_: int) -> Break:
    def edit(header: dict[str, Any]) -> None:
        offsets = header[tensor]["data_offsets"]
        header[tensor]["data_offsets"] = [offset + bytes_ for offset in offsets]

    return lambda folder: edit_header(shard_with(folder, tensor), edit)


def _gap(folder: Path) -> None:
    """Two bytes more between the last tensor and the ones before."""
    path = shard_with(folder, NORM)

    def edit(header: dict[str, Any]) -> None:
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        last = max(entries, key=lambda entry: entry["data_offsets"][1])
        last["data_offsets"] = [offset + 2 for offset in last["data_offsets"]]

    edit_header(path, edit)
    with path.open("ab") as file:
        file.write(b"\0\0")


def _drop(name: str) -> Break:
    """Remove a tensor's name from file and index; its bytes stay under another's name."""
    return lambda folder: rename_tensor(folder, name, "model.rotary.inv_freq")


def _twice(folder: Path) -> None:
    path = shard_with(folder, NORM)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entry = b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    text = b"{" + entry + entry + data[9:start]
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])


BROKEN: dict[str, tuple[Break, tuple[str, ...]]] = {
    "shard truncated by a byte": (_cut(-1), ("ends at byte", "it is truncated")),
    "shard truncated in its header": (_cut(20), ("header length", "end at 20 bytes")),
    "shard truncated in the header's length": (_cut(5), ("5 bytes long, too short",)),
    "shard empty": (_cut(0), ("0 bytes long, too short",)),
    "header longer than the file": (_length(3 << 20), ("header length 3145728", "file's end")),
    "header length huge": (_length(2**63 + 1), ("header length 9223372036854775809", "limit")),
    "header length just over": (_length(HEADER_LIMIT + 1), ("beyond the limit of 4194304",)),
    "header not JSON": (_header_text(b"{not json}"), ("header: is not valid JSON",)),
    "header no object": (_header_text(b"[]"), ("header: holds a list",)),
    "header entry no object": (_header_text(b'{"a": 3}'), ("'a'", "3, not an object")),
    "header names a tensor twice": (_twice, ("the name 'a' occurs twice",)),
    "header metadata no texts": (
        _header_text(b'{"__metadata__": {"format": 3}}'),
        ("__metadata__ is {'format': 3}",),
    ),
    "bytes after the last tensor": (_append, ("4 bytes after the last tensor",)),
    "offsets overlap": (_shift(SINKS, -2), (SINKS, "overlaps the one before")),
    "offsets leave a gap": (_gap, ("leaves a gap",)),
    "offsets misaligned": (_shift(SINKS, 1), (SINKS, "not a multiple of 2 for BF16")),
    "offsets out of range": (_entry(NORM, data_offsets=[2**40, 2**40 + 128]), (NORM, "holds")),
    "offsets negative": (_entry(NORM, data_offsets=[-2, 126]), (NORM, "no [begin, end]")),
    "offsets reversed": (_entry(NORM, data_offsets=[128, 0]), (NORM, "no [begin, end]")),
    "offsets no pair": (_entry(NORM, data_offsets=[0]), (NORM, "no [begin, end]")),
    "offsets no integers": (_entry(NORM, data_offsets=[0.0, True]), (NORM, "no [begin, end]")),
    "size not that of the shape": (_entry(NORM, shape=[65]), (NORM, "takes 130 bytes", "128")),
    "shape huge": (_entry(NORM, shape=[2**62] * 8), (NORM, "takes")),
    "shape of numbers too long to write": (
        _entry(NORM, shape=[10**4299] * 8),
        (NORM, "no list of at most 8 sizes"),
    ),
    "shape too deep": (_entry(NORM, shape=[1] * 9), (NORM, "no list of at most 8 sizes")),
    "shape of text": (_entry(NORM, shape="64"), (NORM, "shape '64'")),
    "dtype unknown": (_entry(NORM, dtype="BF17"), (NORM, "dtype 'BF17' is unknown")),
    "dtype wrong": (_entry(NORM, dtype="F16"), (NORM, "is F16 [64]", "calls for BF16 [64]")),
    "shape wrong": (_entry(ROUTER, shape=[64, 4]), (ROUTER, "BF16 [64, 4]", "BF16 [4, 64]")),
    "config of more layers": (
        _config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        ("has no tensor model.layers.2.input_layernorm.weight (nor 18 others)",),
    ),
    "config of fewer layers": (
        _config(num_hidden_layers=1, layer_types=["full_attention"]),
        ("model.layers.1.", "config.json does not call for"),
    ),
    "config of more experts": (_config(num_local_experts=8), ("calls for",)),
    "config of another width": (_config(hidden_size=96), ("calls for",)),
    "config of another architecture": (_config(model_type="gemma"), ("model_type is 'gemma'",)),
    "config heads indivisible": (
        _config(num_attention_heads=5),
        ("num_attention_heads is 5, not a multiple",),
    ),
    "config quantized in groups that do not fit": (
        _config(quantization={"bits": 4, "group_size": 128}),
        ("quantization of model.layers.0.self_attn.o_proj", "group_size 128"),
    ),
    "config quantized but the files are not": (
        _config(quantization={"bits": 4, "group_size": 64}),
        ("has no tensor model.layers.0.self_attn.o_proj.scales",),
    ),
    "tensor missing": (_drop(SINKS), (f"has no tensor {SINKS}, which config.json",)),
    "config naming too few layer types": (
        lambda folder: edit_json(
            folder / "config.json", lambda c: c.update(layer_types=c["layer_types"][:1])
        ),
        ("layer_types names 1 layers of 2",),
    ),
    "index not JSON": (lambda f: _write(f / INDEX, "{"), (INDEX, "is not valid JSON")),
    "index without a map": (_index(lambda i: i.pop("weight_map")), ("weight_map is None",)),
    "index with an empty map": (_index(lambda i: i["weight_map"].clear()), ("weight_map is {}",)),
    "index naming a missing file": (
        _place(NORM, "model-00009-of-00009.safetensors"),
        (INDEX, "names 'model-00009-of-00009.safetensors', which is not in the folder"),
    ),
    "index naming a tensor that is not there": (
        lambda f: _place("model.layers.7.x", shard_with(f, NORM).name)(f),
        (INDEX, "'model.layers.7.x'", "which does not hold it"),
    ),
    "index naming another file": (
        lambda f: _place(SINKS, shard_with(f, "lm_head.weight").name)(f),
        (SINKS, f"which {INDEX} does not place there"),
    ),
    "index leaving a tensor out": (
        _index(lambda i: i["weight_map"].pop(SINKS)),
        (SINKS, f"which {INDEX} does not place there"),
    ),
    "index climbing out": (
        _place(NORM, "../model.safetensors"),
        ("'../model.safetensors', not the plain name",),
    ),
    "index with an absolute path": (_place(NORM, "/etc/x.safetensors"), ("not the plain name",)),
    "index with a backslash": (_place(NORM, "..\\x.safetensors"), ("not the plain name",)),
    "index with a hidden name": (_place(NORM, ".x.safetensors"), ("not the plain name",)),
    "index with another suffix": (_place(NORM, "config.json"), ("not the plain name",)),
    "index with a NUL": (_place(NORM, "a\0.safetensors"), ("not the plain name",)),
    "index with a newline": (_place(NORM, "a\n.safetensors"), ("'a\\n.safetensors', not",)),
    "index with a name too long": (_place(NORM, "x" * 300 + ".safetensors"), ("not the plain",)),
    "index with a number": (_place(NORM, 3), ("is 3, not the plain name",)),
    "shard removed": (lambda f: shard_with(f, NORM).unlink(), ("which is not in the folder",)),
    "shard a folder": (
        lambda f: _folder(shard_with(f, NORM)),
        ("cannot be read: a folder, not a file",),
    ),
    "config removed": (lambda f: (f / "config.json").unlink(), ("config.json: cannot be read",)),
    "index removed": (lambda f: (f / INDEX).unlink(), ("holds neither", INDEX)),
}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_in_a_line_before_allocating(
    breakable: Path, case: str
) -> None:
    breaks, parts = BROKEN[case]
    breaks(breakable)
    before = sorted(breakable.iterdir())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(breakable)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert text.startswith(str(breakable))
    assert [part for part in parts if part not in text] == []
    assert "\n" not in text
    assert len(text) < 500 + len(str(breakable)) * 2
    assert peak < BYTES_LIMIT
    assert sorted(breakable.iterdir()) == before


def test_an_unknown_tensor_is_refused(breakable: Path) -> None:
    def add(header: dict[str, Any]) -> None:
        header["lm_head.bias"] = {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}

    edit_header(shard_with(breakable, NORM), add)
    _place("lm_head.bias", shard_with(breakable, NORM).name)(breakable)
    with pytest.raises(CheckpointError, match=r"holds tensor 'lm_head\.bias', which config"):
        Checkpoint.open(breakable)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing: is not a folder"):
        Checkpoint.open(tmp_path / "nothing")


def test_the_index_may_be_large_but_is_bounded(breakable: Path) -> None:
    with (breakable / INDEX).open("ab") as file:
        file.write(b" " * (5 << 20))
    with pytest.raises(CheckpointError, match="larger than 4,194,304 bytes"):
        Checkpoint.open(breakable)
    assert json.loads((breakable / INDEX).read_text(encoding="utf-8"))
