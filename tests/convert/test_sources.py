"""Every layout gives the released bytes again, and what cannot is not passed off as it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.sources import gguf as gguf_source
from convert.sources import open_source, original, standard
from convert.sources.standard import tokenizer_files
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.recipe import RECIPES
from tests.convert.layouts import config_of, write_gguf, write_mlx_lm, write_original
from tests.convert.results import (
    SHAPE,
    contents,
    convert,
    experts,
    refusal,
    stored,
    weights,
)
from tests.support.broken import edit_json
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.quantized import write_quantized
from tests.support.released_tensors import raw_tensors, read_tensors, widened

INDEX = "model.safetensors.index.json"

Write = Callable[[Path, Path], Path]
"""(released folder, an empty folder's path) -> the source in another layout."""

EXACT: dict[str, Write] = {
    "original": lambda release, folder: write_original(release, folder / "original"),
    "original in files": lambda release, folder: write_original(release, folder / "o", files=3),
    "mlx-lm": lambda release, folder: write_mlx_lm(release, folder / "mlx", files=2),
    "gguf": lambda release, folder: write_gguf(release, folder / "model.gguf"),
    "gguf of float32": lambda release, folder: write_gguf(release, folder / "f.gguf", rest="F32"),
    "gguf in parts": lambda release, folder: write_gguf(release, folder / "m.gguf", parts=2),
    "converted": lambda release, folder: convert(release, folder / "converted"),
}
INEXACT: dict[str, Write] = {
    "gguf of Q8_0": lambda release, folder: write_gguf(release, folder / "q.gguf", rest="Q8_0"),
    "gguf of F16": lambda release, folder: write_gguf(release, folder / "h.gguf", rest="F16"),
    "gguf of MXFP4": lambda release, folder: write_gguf(release, folder / "4.gguf", rest="MXFP4"),
    "mlx-lm in 8 bits": lambda release, folder: write_mlx_lm(release, folder / "mlx", rest=8),
    "converted to 8 bits": lambda release, folder: convert(release, folder / "8", "8"),
    "converted to 8 bits and bf16": lambda release, folder: convert(
        convert(release, folder / "8", "8"), folder / "bf16"
    ),
    "gguf of Q8_0 converted": lambda release, folder: convert(
        write_gguf(release, folder / "q.gguf", rest="Q8_0"), folder / "bf16"
    ),
}

SHAPES = st.builds(
    lambda layers, hidden, intermediate, number, kv_heads, group, half, vocab: Shape(
        layers,
        32 * hidden,
        32 * intermediate,
        number,
        1,
        kv_heads * group,
        kv_heads,
        2 * half,
        vocab,
    ),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 90),
)


@pytest.mark.parametrize("kind", EXACT)
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(shape=SHAPES, recipe=st.sampled_from(list(RECIPES)), seed=st.integers(0, 99))
def test_experts_of_any_shape_stay_bit_for_bit(
    kind: str, tmp_path: Path, shape: Shape, recipe: str, seed: int
) -> None:
    released = write_checkpoint(tmp_path / "any" / "release", shape, seed=seed, shard_bytes=9_000)
    try:
        source = EXACT[kind](released, tmp_path / "any" / "source")
        made = convert(source, tmp_path / "any" / "made", recipe)
        assert experts(made) == experts(released)
        Checkpoint.open(made).close()
    finally:
        shutil.rmtree(tmp_path / "any")


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("recipe", ["bf16", "mixed"])
def test_every_exact_source_gives_the_same_weight_files(
    kind: str, recipe: str, release: Path, tmp_path: Path
) -> None:
    made = convert(EXACT[kind](release, tmp_path / "source"), tmp_path / "made", recipe)
    same = convert(release, tmp_path / "same", recipe)
    assert weights(made) == weights(same)
    assert {name for name in contents(made) if "model" in name} == {"model.safetensors", INDEX}


@pytest.mark.parametrize("kind", EXACT)
def test_released_tensors_come_back_from_every_exact_source(
    kind: str, release: Path, tmp_path: Path
) -> None:
    source = EXACT[kind](release, tmp_path / "source")
    made = convert(source, tmp_path / "made", target="release")
    assert stored(made) == stored(release)
    with Checkpoint.open(made) as one, Checkpoint.open(release) as other:
        assert one.config == other.config
    own, released = config_of(made), config_of(release)
    assert own == released


@pytest.mark.parametrize("case", ["in files", "in one file", "index with CRLF", "odd header"])
def test_a_release_comes_back_byte_for_byte(case: str, release: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if case == "in one file":
        write_checkpoint(source, SHAPE, seed=2)
        (source / INDEX).unlink()
        next(source.glob("*.safetensors")).rename(source / "model.safetensors")
    else:
        shutil.copytree(release, source)
    if case == "index with CRLF":
        index = (source / INDEX).read_bytes()
        (source / INDEX).write_bytes(index.replace(b"\n", b"\r\n"))
    if case == "odd header":
        _space_out(next(source.glob("*.safetensors")))
    (source / "LICENSE").write_text("Apache\n", encoding="utf-8")
    (source / "chat_template.jinja").write_bytes(b"{{ x }}\xff")
    before = contents(source)
    middle = convert(source, tmp_path / "bf16")
    assert not set(before) - set(contents(middle)) - set(weights(source))
    made = convert(middle, tmp_path / "made", target="release")
    assert contents(made) == before == contents(source)


def _space_out(path: Path) -> None:
    """The same header with other white space, in the other order, with metadata of two entries."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = {"format": "pt", "made by": "händ"}
    text = json.dumps(dict(reversed(header.items())), indent=3, ensure_ascii=False).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])


@pytest.mark.parametrize("kind", INEXACT)
def test_what_lost_something_becomes_mlx_but_no_release(
    kind: str, release: Path, tmp_path: Path
) -> None:
    source = INEXACT[kind](release, tmp_path / "source")
    line = refusal(source, tmp_path / "back", "--to", "release")
    assert line.startswith(f"{source}: its weights are quantized further than the release")
    assert not (tmp_path / "back").exists()
    for recipe in ("bf16", "8"):
        made = convert(source, tmp_path / recipe, recipe)
        assert experts(made) == experts(release)
        Checkpoint.open(made).close()


def test_float32_that_bfloat16_cannot_hold_becomes_mlx_but_no_release(
    release: Path, tmp_path: Path
) -> None:
    model = write_gguf(release, tmp_path / "model.gguf", rest="F32")
    reader = gguf.GGUFReader(model)
    at = next(int(t.data_offset) for t in reader.tensors if t.name == "output.weight")
    data = bytearray(model.read_bytes())
    data[at] |= 1
    model.write_bytes(data)
    line = refusal(model, tmp_path / "back", "--to", "release")
    assert f"{model.name}: tensor output.weight holds float32 values that bfloat16" in line
    assert stored(convert(model, tmp_path / "made")) == stored(release)


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_numbers_of_other_ggml_types_are_the_nearest_in_bfloat16(
    kind: str, release: Path, tmp_path: Path
) -> None:
    model = write_gguf(release, tmp_path / "model.gguf", rest=kind)
    made = raw_tensors(convert(model, tmp_path / "made"))
    type_ = gguf.GGMLQuantizationType[kind]
    names = {"output.weight": "lm_head", "blk.1.attn_k.weight": "model.layers.1.self_attn.k_proj"}
    found = {t.name: t.data for t in gguf.GGUFReader(model).tensors if t.name in names}
    for name, module in names.items():
        wanted = mx.array(gguf.dequantize(found[name], type_)).astype(mx.bfloat16)
        _, values = made[f"{module}.weight"]
        np.testing.assert_array_equal(values, np.array(wanted.view(mx.uint16)))


def test_packed_matrices_are_copied_where_the_recipe_says_the_same(
    release: Path, tmp_path: Path
) -> None:
    source = write_mlx_lm(release, tmp_path / "source", rest=6)
    made, packed = stored(convert(source, tmp_path / "made", "6")), stored(source)
    shared = {name for name in packed if name in made and ".experts." not in name}
    assert {name: made[name] for name in shared} == {name: packed[name] for name in shared}
    assert sum(name.endswith(".biases") for name in shared) == 2 * 5 + 2


def test_packed_matrices_are_unpacked_for_another_recipe(release: Path, tmp_path: Path) -> None:
    source = write_mlx_lm(release, tmp_path / "source", rest=6)
    made, exact = convert(source, tmp_path / "made"), read_tensors(source)
    for name in ("lm_head.weight", "model.layers.0.mlp.router.weight"):
        error = np.abs(read_tensors(made)[name] - exact[name]).max()
        assert 0 < error < 2**-7 * np.abs(exact[name]).max()
    wanted = stored(write_quantized(made, tmp_path / "same", {"group_size": 64, "bits": 4}))
    routers = {name: data for name, data in stored(source).items() if ".router." in name}
    assert stored(convert(source, tmp_path / "4", "4")) == {**wanted, **routers}  # of 8 bits


def test_modules_without_a_mode_are_affine_as_in_older_mlx_lm(
    release: Path, tmp_path: Path
) -> None:
    source = write_mlx_lm(release, tmp_path / "source", rest=8)

    def strip(config: dict[str, Any]) -> None:
        for entry in config["quantization"].values():
            if isinstance(entry, dict):
                entry.pop("mode")

    before = weights(convert(source, tmp_path / "before", "8"))
    edit_json(source / "config.json", strip)
    assert weights(convert(source, tmp_path / "after", "8")) == before


def test_tokenizer_files_come_only_with_their_vocabulary(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> None:
        (folder / "tokenizer.json").write_text("tokens", encoding="utf-8")

    monkeypatch.setattr(standard, "write_tokenizer", write)
    assert tokenizer_files(ModelConfig.from_file(release / "config.json")) == {}
    config = {**config_of(release), "vocab_size": 201088}
    files = tokenizer_files(ModelConfig.from_values(config, release))
    stops = json.loads(files.pop("generation_config.json"))["eos_token_id"]
    assert stops == [200002, 199999, 200012]
    assert files == {"tokenizer.json": b"tokens"}


@pytest.mark.parametrize("kind", ["original", "gguf"])
def test_tokenizer_files_are_written_where_the_source_has_none(
    kind: str, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"original": original, "gguf": gguf_source}[kind]
    monkeypatch.setattr(module, "tokenizer_files", lambda _: {"tokenizer.json": b"tokens"})
    source = EXACT[kind](release, tmp_path / "source")
    for target in ("mlx", "release"):
        made = contents(convert(source, tmp_path / target, target=target))
        assert made["tokenizer.json"] == b"tokens"


@pytest.mark.oracle
@pytest.mark.parametrize("bits", [None, 8])
def test_what_mlx_lm_itself_converted(
    bits: int | None, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    whole = Path(shutil.copytree(release, tmp_path / "whole"))
    _write_words(whole, SHAPE.vocab)
    mlx_lm.convert(str(whole), str(tmp_path / "mlx"), quantize=bits is not None, q_bits=bits)
    capsys.readouterr()
    ours = write_mlx_lm(release, tmp_path / "ours", rest=bits)
    assert stored(tmp_path / "mlx") == stored(ours), "the writer for tests is not like mlx-lm's"
    assert open_source(tmp_path / "mlx").kind == "mlx-lm"
    if bits is None:
        made = convert(tmp_path / "mlx", tmp_path / "made", target="release")
        assert stored(made) == stored(release)
    else:
        made = convert(tmp_path / "mlx", tmp_path / "made", str(bits))
        assert weights(made) == weights(convert(release, tmp_path / "same", str(bits)))
    assert contents(made)["tokenizer.json"] == contents(tmp_path / "mlx")["tokenizer.json"]


def _write_words(folder: Path, count: int) -> None:
    """A tokenizer of `count` words, since mlx-lm opens no model without one."""
    words = {f"word{i}": i for i in range(count)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "word0"}
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
    (folder / "tokenizer.json").write_text(json.dumps({**whole, "model": model}))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "word0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_widened_oracle_reads_what_safetensors_reads(release: Path) -> None:
    for name, (dtype, array) in raw_tensors(release).items():
        assert stored(release)[name] == (dtype, array.shape, array.tobytes())
        assert dtype != "BF16" or np.isfinite(widened(array)).all()
