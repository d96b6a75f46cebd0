"""Verification: silent on what is right, and it names whatever was changed after it was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest

from convert.conversion import Conversion
from convert.verify import mxfp4_values
from gptoss_mlx.errors import ConversionError, GptOssError
from tests.convert.layouts import ggml_mxfp4, write_gguf, write_mlx_lm, write_original
from tests.convert.results import SHAPE, contents, convert, refusal, run
from tests.support.broken import edit_header, edit_json, header_of
from tests.support.released_tensors import mxfp4

LAYER = "model.layers.1"
EXPERTS = f"{LAYER}.mlp.experts"
NAMES = {
    "experts": f"{EXPERTS}.down_proj_blocks",
    "scales": f"{EXPERTS}.gate_up_proj_scales",
    "expert biases": f"{EXPERTS}.gate_up_proj_bias",
    "quantized matrix": f"{LAYER}.self_attn.k_proj.weight",
    "its scales": f"{LAYER}.self_attn.k_proj.scales",
    "its biases": f"{LAYER}.self_attn.k_proj.biases",
    "norm": f"{LAYER}.post_attention_layernorm.weight",
    "sinks": "model.layers.0.self_attn.sinks",
    "head": "lm_head.weight",
}
KINDS = ("released", "original", "mlx-lm", "mlx-lm in 8 bits", "gguf", "gguf of Q8_0", "converted")


@pytest.fixture(scope="module")
def sources(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By kind; read-only."""
    folder = tmp_path_factory.mktemp("sources")
    return {
        "released": release,
        "original": write_original(release, folder / "original"),
        "mlx-lm": write_mlx_lm(release, folder / "mlx"),
        "mlx-lm in 8 bits": write_mlx_lm(release, folder / "mlx8", rest=8),
        "gguf": write_gguf(release, folder / "model.gguf"),
        "gguf of Q8_0": write_gguf(release, folder / "model8.gguf", rest="Q8_0"),
        "converted": convert(release, folder / "converted", "8"),
    }


@pytest.fixture(scope="module")
def converted(
    sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Each source in 8 bits; read-only."""
    folder = tmp_path_factory.mktemp("converted")
    return {kind: convert(source, folder / kind, "8") for kind, source in sources.items()}


@pytest.fixture
def made(converted: dict[str, Path], tmp_path: Path) -> Path:
    """The release in 8 bits, for a test to change."""
    return Path(shutil.copytree(converted["released"], tmp_path / "made"))


def _flip(folder: Path, tensor: str, at: int = 1) -> None:
    """Change a byte of a tensor, on the disk."""
    path = next(p for p in folder.glob("*.safetensors") if tensor in header_of(p))
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + header_of(path)[tensor]["data_offsets"][0] + at] ^= 0x11
    path.write_bytes(data)


def _record_anew(folder: Path, tensor: str) -> None:
    """Put the hash of what is there into the manifest."""
    path = next(p for p in folder.glob("*.safetensors") if tensor in header_of(p))
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    begin, end = (start + offset for offset in header_of(path)[tensor]["data_offsets"])
    digest = sha256(data[begin:end]).hexdigest()
    manifest = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
    manifest["tensors"][tensor] = digest
    text = json.dumps(manifest, indent=1) + "\n"
    (folder / "conversion.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["bf16", "mixed"])
def test_what_was_converted_is_believed(
    kind: str, recipe: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    made = tmp_path / "made"
    result = run(sources[kind], made, "--bits", recipe, "--verify")
    assert result.exit_code == 0, result.output
    count = sum(len(header_of(p)) - 1 for p in made.glob("*.safetensors"))
    assert result.stderr.splitlines()[-1] == f"{made}: {count} tensors equal their source"
    before = contents(made)
    again = run(sources[kind], made, "--bits", recipe, "--verify")
    assert (again.exit_code, contents(made)) == (0, before)


@pytest.mark.parametrize("kind", ["released", "original", "mlx-lm", "gguf"])
def test_a_release_that_was_made_is_believed_until_it_changes(
    kind: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    made = tmp_path / "made"
    assert run(sources[kind], made, "--to", "release", "--verify").exit_code == 0
    for name in ("experts", "scales", "norm", "head"):
        _flip(made, NAMES[name])
        line = refusal(sources[kind], made, "--to", "release", "--verify")
        assert f"tensor {NAMES[name]} differs from its source in rows 0 to " in line
        _flip(made, NAMES[name])
    assert run(sources[kind], made, "--to", "release", "--verify").exit_code == 0


def refusal_of_verification(source: Path, made: Path, *options: str) -> str:
    result = run(source, made, *options, "--verify")
    assert result.exit_code == 1
    first, last = result.stderr.splitlines()
    assert first == f"{made}: is complete already"
    return last.removeprefix("error: ")


@pytest.mark.parametrize("part", NAMES)
def test_a_changed_byte_is_named(part: str, sources: dict[str, Path], made: Path) -> None:
    _flip(made, NAMES[part])
    line = refusal_of_verification(sources["released"], made, "--bits", "8")
    assert line.startswith(f"{made / 'model.safetensors'}: tensor ")
    if part == "scales":  # which the blocks are decoded with
        assert f"{NAMES['scales'].replace('_scales', '_blocks')} differs from" in line
        assert line.endswith("in expert 0 (it or its scales)")
    else:
        assert f"tensor {NAMES[part]} has SHA-256 " in line
        assert "but the manifest records " in line


@pytest.mark.parametrize(
    ("part", "kind"),
    [(part, "released") for part in NAMES]
    + [(part, kind) for part in ("experts", "scales", "norm") for kind in ("mlx-lm", "gguf")],
)
def test_a_changed_byte_is_named_even_if_the_manifest_was_changed_with_it(
    part: str, kind: str, sources: dict[str, Path], converted: dict[str, Path], tmp_path: Path
) -> None:
    made = Path(shutil.copytree(converted[kind], tmp_path / "made"))
    _flip(made, NAMES[part])
    _record_anew(made, NAMES[part])
    line = refusal_of_verification(sources[kind], made, "--bits", "8")
    if part in ("experts", "scales"):
        stem = NAMES[part].rpartition("_")[0]
        where = f"tensor {stem}_blocks differs from its source in expert 0"
    elif part in ("quantized matrix", "its scales", "its biases", "head"):
        where = f"tensor {NAMES[part]} differs from its source in rows 0 to "
    else:
        where = f"tensor {NAMES[part]} differs from its source"
    assert where in line


def test_the_expert_that_differs_is_named(sources: dict[str, Path], made: Path) -> None:
    name = NAMES["experts"]
    _flip(made, name, at=2 * (128 * 64 // 2) + 5)
    _record_anew(made, name)
    conversion = Conversion.prepare(sources["released"], made, target="mlx", recipe="8")
    with pytest.raises(ConversionError, match=r"differs from its source in expert 2 "):
        conversion.verify()


def test_another_model_of_the_same_name_and_shape_is_told_apart(
    sources: dict[str, Path], checkpoint_of: Callable[..., Path], made: Path
) -> None:
    other = checkpoint_of(SHAPE, seed=5, shard_bytes=100_000)
    assert other.name == sources["released"].name
    for more in ((), ("--verify",), ("--dry-run",)):
        line = refusal(other, made, "--bits", "8", *more)
        assert line == (
            f"{made}: holds a conversion of another source, called 'random'; choose another folder"
        )


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("names exchanged", "begins otherwise than this conversion's"),
        ("cut short", "bytes, but this conversion's has "),
        ("gone", "is missing"),
        ("another header", "bytes, but this conversion's has "),
    ],
)
def test_a_file_of_another_header_or_size_is_named(
    damage: str, told: str, sources: dict[str, Path], made: Path
) -> None:
    file = made / "model.safetensors"
    if damage == "names exchanged":
        k, v = NAMES["quantized matrix"], NAMES["quantized matrix"].replace("k_proj", "v_proj")
        data = file.read_bytes()
        swapped = data.replace(k.encode(), b"?" * len(k)).replace(v.encode(), k.encode())
        file.write_bytes(swapped.replace(b"?" * len(k), v.encode()))
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        edit_header(file, lambda header: header.update(__metadata__={"format": "pt"}))
    for more in ((), ("--verify",), ("--dry-run",)):
        line = refusal(sources["released"], made, "--bits", "8", *more)
        assert line.startswith(f"{file}: ")
        assert told in line


@pytest.mark.parametrize("damage", ["gone", "of another format", "no JSON", "without a tensor"])
def test_a_manifest_that_is_none_is_told_in_a_line(
    damage: str, sources: dict[str, Path], made: Path
) -> None:
    manifest = made / "conversion.json"
    conversion = Conversion.prepare(sources["released"], made, target="mlx", recipe="8")
    if damage == "gone":
        manifest.unlink()
    elif damage == "of another format":
        edit_json(manifest, lambda content: content.update(format=1))
    elif damage == "no JSON":
        manifest.write_text("{", encoding="utf-8")
    else:
        edit_json(manifest, lambda content: content["tensors"].pop(NAMES["norm"]) and None)
    with pytest.raises(GptOssError) as caught:
        conversion.verify()
    assert str(made) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_source_with_every_scale_there_may_be(release: Path, tmp_path: Path) -> None:
    """From 2^-127 to 2^127, in each format's own decoder."""
    extreme = Path(shutil.copytree(release, tmp_path / "release"))
    for path in extreme.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in header_of(path).items():
            if name.endswith("_scales"):
                begin, end = (start + offset for offset in entry["data_offsets"])
                data[begin:end] = bytes(i % 255 for i in range(end - begin))
        path.write_bytes(data)
    for source in (
        extreme,
        write_mlx_lm(extreme, tmp_path / "mlx"),
        write_gguf(extreme, tmp_path / "gguf" / "model.gguf"),
    ):
        made = tmp_path / "made" / source.name
        assert run(source, made, "--bits", "bf16", "--verify").exit_code == 0


def test_the_decoder_is_the_formats_definition() -> None:
    rng = np.random.default_rng(4)
    blocks = rng.integers(0, 256, (3, 2, 16), np.uint8)
    scales = rng.integers(0, 250, (3, 2), np.uint8)
    found = mxfp4_values(blocks, scales)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, mxfp4(blocks.reshape(3, 32), scales))
    raw = gguf.dequantize(ggml_mxfp4(blocks, scales), gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(found, raw)
    words = mx.array(blocks.reshape(3, 32).view("<u4"))
    theirs = mx.dequantize(words, mx.array(scales), group_size=32, bits=4, mode="mxfp4")
    np.testing.assert_array_equal(found, np.array(theirs.astype(mx.float32)))


def test_progress_ends_at_the_total(sources: dict[str, Path], made: Path) -> None:
    conversion = Conversion.prepare(sources["released"], made, target="mlx", recipe="8")
    steps: list[tuple[int, int]] = []
    conversion.verify(lambda done, total: steps.append((done, total)))
    total = sum(task.nbytes for task in conversion.plan.tasks)
    assert steps == sorted(steps)
    assert steps[-1] == (total, total)
    recorded = json.loads((made / "conversion.json").read_text(encoding="utf-8"))
    assert len(recorded["tensors"]) == sum(len(t.outputs) for t in conversion.plan.tasks)
