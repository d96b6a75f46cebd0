"""Sources that are damaged, incomplete or of another kind: refused in a line, left as they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.convert.layouts import write_gguf, write_mlx_lm, write_original
from tests.convert.results import contents, convert, refusal
from tests.support.broken import (
    edit_header,
    edit_json,
    header_of,
    rename_tensor,
    shard_with,
    write_shard,
)

SCALES = "model.layers.1.mlp.experts.gate_up_proj_scales"
SINKS = "model.layers.0.self_attn.sinks"

Break = Callable[[Path], None]


@pytest.fixture(scope="module")
def sources(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each kind in a folder; read-only."""
    folder = tmp_path_factory.mktemp("sources")
    return {
        "released": release,
        "original": write_original(release, folder / "original", files=2),
        "mlx-lm": write_mlx_lm(release, folder / "mlx-lm", rest=8, files=2),
        "gguf": write_gguf(release, folder / "gguf" / "model.gguf").parent,
        "parts": write_gguf(release, folder / "parts" / "model.gguf", parts=2).parent,
        "converted": convert(release, folder / "converted"),
    }


def _config(**changes: Any) -> Break:
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(changes))


def _without(field: str) -> Break:
    return lambda folder: edit_json(folder / "config.json", lambda c: c.pop(field) and None)


def _truncate(size: int) -> Break:
    """The last weight file; from its end if negative."""

    def edit(folder: Path) -> None:
        path = sorted((*folder.glob("*.safetensors"), *folder.glob("*.gguf")))[-1]
        with path.open("r+b") as file:
            file.truncate(size if size >= 0 else path.stat().st_size + size)

    return edit


def _bytes_of(folder: Path, tensor: str, value: int, at: int) -> None:
    """Put a byte into a safetensors tensor."""
    path = next(p for p in folder.glob("*.safetensors") if tensor in header_of(p))
    begin, end = header_of(path)[tensor]["data_offsets"]
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little") + begin
    assert at < end - begin
    data[start + at] = value
    path.write_bytes(data)


def _nan(tensor: str, at: int) -> Break:
    return lambda folder: _bytes_of(folder, tensor, 255, at)


def _nan_in_gguf(folder: Path) -> None:
    path = next(folder.glob("*.gguf"))
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up_exps.weight")
    data = bytearray(path.read_bytes())
    data[int(tensor.data_offset) + tensor.n_bytes // 4 * 3] = 255  # expert 3's first scale
    path.write_bytes(data)


def _rename(old: str, new: str) -> Break:
    """In the file that holds it; no index is looked at."""

    def edit(folder: Path) -> None:
        path = next(p for p in folder.glob("*.safetensors") if old in header_of(p))
        edit_header(path, lambda header: header.update({new: header.pop(old)}))

    return edit


def _more(folder: Path) -> None:
    """A file with a tensor that another one holds too."""
    path = sorted(folder.glob("*.safetensors"))[0]
    name = next(name for name in header_of(path) if name.endswith("bias"))
    write_shard(folder / "more.safetensors", {name: ("BF16", (1,), b"\0\0")})


def _write_more_gguf(source: Path, **options: Any) -> Break:
    def edit(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        write_gguf(source, folder / "model.gguf", **options)

    return edit


def _garbage(folder: Path) -> None:
    next(folder.glob("*.gguf")).write_bytes(b"not a model" * 50)


def _swapped(folder: Path) -> None:
    """A file as machines of the other byte order write it."""
    path = next(folder.glob("*.gguf"))
    writer = gguf.GGUFWriter(path, "gpt-oss", endianess=gguf.GGUFEndian.BIG)
    writer.add_block_count(2)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _manifest(edit: Callable[[dict[str, Any]], Any]) -> Break:
    return lambda folder: edit_json(folder / "conversion.json", lambda m: edit(m) and None)


def _moved_header(name: str) -> Break:
    def edit(manifest: dict[str, Any]) -> None:
        headers = manifest["release"]["headers"]
        headers[name] = headers.pop(next(iter(headers)))

    return _manifest(edit)


def _lost_header(manifest: dict[str, Any]) -> None:
    manifest["release"]["headers"].popitem()


def _shifted_header(manifest: dict[str, Any]) -> None:
    headers = manifest["release"]["headers"]
    name, text = next(iter(headers.items()))
    header = json.loads(text)
    for entry in header.values():
        if "data_offsets" in entry:
            entry["data_offsets"] = [offset + 8 for offset in entry["data_offsets"]]
    headers[name] = json.dumps(header)


BROKEN: dict[str, tuple[str, Break, tuple[str, ...]]] = {
    "release: a shard cut short": ("released", _truncate(-1), ("it is truncated",)),
    "release: a tensor missing": (
        "released",
        lambda folder: rename_tensor(folder, SINKS, "other"),
        (f"has no tensor {SINKS}",),
    ),
    "release: a shard missing": (
        "released",
        lambda folder: shard_with(folder, SINKS).unlink(),
        ("which is not in the folder",),
    ),
    "release: scale 255": (
        "released",
        _nan(SCALES, 2 * 128 * 4 + 7),
        (SCALES, "the scale 255 (NaN) in expert 2", "the highest is 254"),
    ),
    "release: no config": (
        "released",
        lambda folder: (folder / "config.json").unlink(),
        ("config.json",),
    ),
    "original: a file cut short": ("original", _truncate(-5), ("it is truncated",)),
    "original: a file empty": ("original", _truncate(0), ("too short for a safetensors file",)),
    "original: a tensor missing and a foreign one": (
        "original",
        _rename("block.1.attn.sinks", "block.1.attn.other"),
        ("has no tensor block.1.attn.sinks",),
    ),
    "original: of fewer layers than its tensors": (
        "original",
        _config(num_hidden_layers=1),
        ("holds tensor 'block.1.", "which the config does not call for"),
    ),
    "original: of another width": (
        "original",
        _config(head_dim=16),
        ("block.0.attn.", "but the config calls for"),
    ),
    "original: a tensor twice": ("original", _more, ("more.safetensors", "holds too")),
    "original: scale 255": (
        "original",
        _nan("block.0.mlp.mlp2_weight.scales", 0),
        ("block.0.mlp.mlp2_weight.scales", "the scale 255 (NaN) in expert 0"),
    ),
    "original: a field missing": (
        "original",
        _without("experts_per_token"),
        ("experts_per_token is missing",),
    ),
    "original: a size of text": (
        "original",
        _config(num_hidden_layers="two"),
        ("config.json: num_hidden_layers is 'two', not a number",),
    ),
    "original: no context length": (
        "original",
        _config(initial_context_length=None),
        ("initial_context_length is None, not a number",),
    ),
    "original: an endless factor": (
        "original",
        _config(rope_scaling_factor=10**400),
        ("rope_scaling_factor is 1000000", "not a number"),
    ),
    "original: more layers than memory": (
        "original",
        _config(num_hidden_layers=10**12),
        ("num_hidden_layers is 1000000000000, not within 1 to 1024",),
    ),
    "mlx-lm: a file cut short": ("mlx-lm", _truncate(-5), ("it is truncated",)),
    "mlx-lm: a file missing": (
        "mlx-lm",
        lambda folder: sorted(folder.glob("*.safetensors"))[0].unlink(),
        ("has no tensor",),
    ),
    "mlx-lm: a tensor twice": ("mlx-lm", _more, ("more.safetensors", "holds too")),
    "mlx-lm: a foreign tensor": (
        "mlx-lm",
        lambda folder: write_shard(
            folder / "more.safetensors", {"lm_head.lora": ("F32", (1,), b"1234")}
        ),
        ("holds tensor 'lm_head.lora', which the config does not call for",),
    ),
    "mlx-lm: a matrix without biases": (
        "mlx-lm",
        _rename("lm_head.biases", "lm_head.other"),
        ("has no tensor lm_head.biases",),
    ),
    "mlx-lm: other bits than the config's": (
        "mlx-lm",
        lambda folder: edit_json(
            folder / "config.json",
            lambda c: c["quantization"].update({"lm_head": {"group_size": 64, "bits": 4}}),
        ),
        ("tensor lm_head.weight is U32 [256, 32], but the config calls for U32 [256, 16]",),
    ),
    "mlx-lm: scale 255": (
        "mlx-lm",
        _nan("model.layers.1.mlp.experts.up_proj.scales", 64 * 4 + 1),
        ("experts.gate_proj.scales or model.layers.1.mlp.experts.up_proj.scales", "in expert 1"),
    ),
    "gguf: garbage": ("gguf", _garbage, ("model.gguf: is not a readable GGUF file",)),
    "gguf: empty": ("gguf", _truncate(0), ("model.gguf: is not a readable GGUF file",)),
    "gguf: cut short in its header": ("gguf", _truncate(700), ("is not a readable GGUF file",)),
    "gguf: cut short by a byte": ("gguf", _truncate(-1), ("is not a readable GGUF file",)),
    "gguf: of the other byte order": ("gguf", _swapped, ("its byte order is another one",)),
    "gguf: scale 255": (
        "gguf",
        _nan_in_gguf,
        ("blk.1.ffn_gate_exps.weight or blk.1.ffn_up_exps.weight has the", "in expert 3"),
    ),
    "gguf: a part missing": (
        "parts",
        lambda folder: (folder / "model-00002-of-00002.gguf").unlink(),
        ("its other part model-00002-of-00002.gguf is missing",),
    ),
    "gguf: a part twice": (
        "parts",
        lambda folder: (folder / "model-00002-of-00002.gguf").write_bytes(
            (folder / "model-00001-of-00002.gguf").read_bytes()
        ),
        ("model-00002-of-00002.gguf: holds", "as another part does"),
    ),
    "gguf: two models": (
        "gguf",
        lambda folder: (folder / "other.gguf").write_bytes(b""),
        ("holds several GGUF models; name one of its files",),
    ),
    **{
        f"converted: a record of a file {name!a}": (
            "converted",
            _moved_header(name),
            ("conversion.json: its release does not hold the tensors",),
        )
        for name in (
            *("../up.safetensors", "in/it.safetensors", "/tmp/x.safetensors", "config.json"),
            *("\ud800.safetensors", "\x1b[2J.safetensors", "x" * 300 + ".safetensors"),
        )
    },
    "converted: a record that lacks a file": (
        "converted",
        _manifest(_lost_header),
        ("its release does not hold the tensors",),
    ),
    "converted: a record with a gap": (
        "converted",
        _manifest(_shifted_header),
        ("its release does not hold the tensors",),
    ),
    "converted: a record of another kind": (
        "converted",
        _manifest(lambda manifest: manifest.update(release=[1])),
        ("its release does not hold the tensors",),
    ),
}


@pytest.mark.parametrize("target", ["mlx", "release"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_source_is_refused_in_a_line_and_left_as_it_is(
    case: str, target: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    kind, breaks, parts = BROKEN[case]
    folder = Path(shutil.copytree(sources[kind], tmp_path / "source"))
    breaks(folder)
    before = contents(folder)
    line = refusal(folder, tmp_path / "made", "--to", target)
    if not (kind == "mlx-lm" and target == "release"):  # of 8 bits, which comes first
        assert [part for part in parts if part not in line] == []
    assert contents(folder) == before
    assert not list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob("made/*.safetensors"))
