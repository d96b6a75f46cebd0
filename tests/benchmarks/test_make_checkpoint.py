"""Random checkpoints: the released layout to the byte, of any shape, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import gptoss_mlx
from benchmarks.make_checkpoint import main
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.models.checkpoint import Checkpoint, expected_tensors
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.released import CONFIGS
from tests.conftest import SMALL
from tests.support import checkpoints, transformers_oracle
from tests.support.checkpoints import SHAPES, Shape, config_json, write_checkpoint

INDEX = "model.safetensors.index.json"

# One layer of the released files, in their order: name, dtype, and shape for SMALL.
LAYER: list[tuple[str, str, list[int]]] = [
    ("input_layernorm.weight", "BF16", [64]),
    ("self_attn.o_proj.bias", "BF16", [64]),
    ("self_attn.o_proj.weight", "BF16", [64, 64]),
    ("self_attn.q_proj.bias", "BF16", [64]),
    ("self_attn.k_proj.bias", "BF16", [32]),
    ("self_attn.v_proj.bias", "BF16", [32]),
    ("self_attn.q_proj.weight", "BF16", [64, 64]),
    ("self_attn.k_proj.weight", "BF16", [32, 64]),
    ("self_attn.v_proj.weight", "BF16", [32, 64]),
    ("self_attn.sinks", "BF16", [4]),
    ("mlp.router.bias", "BF16", [4]),
    ("mlp.router.weight", "BF16", [4, 64]),
    ("mlp.experts.gate_up_proj_bias", "BF16", [4, 192]),
    ("mlp.experts.gate_up_proj_blocks", "U8", [4, 192, 2, 16]),
    ("mlp.experts.gate_up_proj_scales", "U8", [4, 192, 2]),
    ("mlp.experts.down_proj_bias", "BF16", [4, 64]),
    ("mlp.experts.down_proj_blocks", "U8", [4, 64, 3, 16]),
    ("mlp.experts.down_proj_scales", "U8", [4, 64, 3]),
    ("post_attention_layernorm.weight", "BF16", [64]),
]
REST: list[tuple[str, str, list[int]]] = [
    ("model.embed_tokens.weight", "BF16", [8192, 64]),
    ("model.norm.weight", "BF16", [64]),
    ("lm_head.weight", "BF16", [8192, 64]),
]


def released_config(name: str) -> dict[str, Any]:
    fields = json.loads(CONFIGS[f"openai/gpt-oss-{name}"].read_text(encoding="utf-8"))
    assert isinstance(fields, dict)
    return fields


@pytest.mark.parametrize("name", ["20b", "120b"])
def test_the_config_is_the_released_one_in_its_order(name: str) -> None:
    made = config_json(SHAPES[name])
    assert list(made.items()) == list(released_config(name).items())


@pytest.mark.parametrize(
    ("name", "total", "shards"), [("20b", 13_761_264_768, 3), ("120b", 65_248_815_744, 15)]
)
def test_the_full_sizes_and_shards_are_the_released_ones(
    name: str, total: int, shards: int
) -> None:
    path = CONFIGS[f"openai/gpt-oss-{name}"]
    sizes = {
        tensor: math.prod(shape) * (2 if dtype == "BF16" else 1)
        for tensor, (dtype, shape) in expected_tensors(ModelConfig.from_file(path), path).items()
    }
    assert sum(sizes.values()) == total
    cut = list(checkpoints._shards(sizes, checkpoints.SHARD_BYTES))
    assert len(cut) == shards
    if name == "20b":
        assert cut[0][-1] == "model.layers.18.self_attn.v_proj.bias"


def test_names_order_dtypes_and_shapes_are_the_released_ones(
    checkpoint_of: Callable[..., Path],
) -> None:
    """Eleven layers, because the released files order layers as text: 0, 1, 10, 2."""
    folder = checkpoint_of(replace(SMALL, layers=11))
    expected = [
        (f"model.layers.{layer}.{name}", dtype, shape)
        for layer in [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]
        for name, dtype, shape in LAYER
    ] + REST
    found = []
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="np") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.offset_keys():
                piece = file.get_slice(name)
                found.append((name, piece.get_dtype(), piece.get_shape()))
    assert found == expected
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    assert list(index["weight_map"]) == [name for name, _, _ in expected]
    data = sum(
        len(entry["data"])
        for shard in folder.glob("*.safetensors")
        for _, entry in safetensors.deserialize(shard.read_bytes())
    )
    assert index["metadata"] == {"total_size": data}


def test_shards_count_from_zero_as_the_released_ones(small_checkpoint: Path) -> None:
    names = sorted(path.name for path in small_checkpoint.glob("*.safetensors"))
    last = len(names) - 1
    assert last > 1
    assert names == [f"model-{i:05d}-of-{last:05d}.safetensors" for i in range(last + 1)]


def digest(folder: Path) -> str:
    files = sorted(folder.iterdir())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_the_seed_decides_every_byte(tmp_path: Path, small_checkpoint: Path) -> None:
    again = write_checkpoint(tmp_path / "again", SMALL, shard_bytes=1 << 20)
    other = write_checkpoint(tmp_path / "other", SMALL, shard_bytes=1 << 20, seed=1)
    assert digest(again) == digest(small_checkpoint) != digest(other)


def test_no_two_tensors_repeat_each_other(small_checkpoint: Path) -> None:
    with Checkpoint.open(small_checkpoint) as checkpoint:
        rows = [
            bytes(row)
            for name, tensor in checkpoint.tensors.items()
            if len(tensor.shape) == 2 and name.endswith(".weight")
            for row in checkpoint.map(tensor)
        ]
    assert len(set(rows)) == len(rows)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    layers=st.integers(2, 6),
    hidden=st.integers(2, 16).map(lambda n: 32 * n),
    intermediate=st.integers(2, 8).map(lambda n: 32 * n),
    experts=st.integers(4, 32),
    kv_heads=st.integers(1, 8),
    group=st.integers(1, 3),
    head_dim=st.integers(8, 32).map(lambda n: 2 * n),
    seed=st.integers(0, 2**64),
)
def test_any_shape_opens(tmp_path: Path, seed: int, kv_heads: int, group: int, **s: int) -> None:
    shape = Shape(vocab=50, kv_heads=kv_heads, heads=kv_heads * group, **s)
    folder = write_checkpoint(tmp_path / "any", shape, seed=seed, shard_bytes=300_000)
    try:
        with Checkpoint.open(folder) as checkpoint:
            checkpoint.check_scales()
            assert checkpoint.config.num_attention_heads == kv_heads * group
            assert checkpoint.config.eos_token_id == 49
    finally:
        shutil.rmtree(folder)


def floats(bits: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_magnitudes_reach_every_part_of_the_model(small_checkpoint: Path) -> None:
    with Checkpoint.open(small_checkpoint) as checkpoint:
        values = {name: checkpoint.map(tensor) for name, tensor in checkpoint.tensors.items()}
    layer = "model.layers.0"
    for name, columns in (("gate_up_proj", 64), ("down_proj", 96)):
        blocks = values[f"{layer}.mlp.experts.{name}_blocks"]
        scales = values[f"{layer}.mlp.experts.{name}_scales"]
        weights = transformers_oracle.dequantize(blocks, scales)
        assert 0.6 < weights.std() * math.sqrt(columns) < 1.6
        assert np.unique(scales).size == 3
        assert np.unique(blocks).size == 256
    for name, bits in values.items():
        if bits.dtype == np.uint16:
            assert np.isfinite(floats(bits)).all(), name
            assert floats(bits).std() > 0.01, name
    bias = floats(values[f"{layer}.mlp.experts.gate_up_proj_bias"])
    assert (np.abs(bias) > 7).mean() > 0.01
    assert np.abs(floats(values[f"{layer}.self_attn.sinks"])).min() > 0


@pytest.mark.oracle
def test_transformers_runs_it_with_live_attention_router_and_clamp(
    checkpoint_of: Callable[..., Path],
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers_oracle.load(checkpoint_of(Shape(4, 256, 256, 8, 4, 8, 2, 32, 1024)))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 1024, (1, 300)))
    with torch.no_grad():
        out = model(ids, output_hidden_states=True, output_attentions=True)
    assert all(torch.isfinite(state).all() for state in out.hidden_states)
    assert 1 < out.logits.std() < 10
    assert out.logits[0].argmax(-1).unique().numel() > 50
    sinks = 1 - out.attentions[1].sum(-1)[0, :, -1]
    assert sinks.max() > 0.2
    assert sinks.min() < 0.9
    assert out.attentions[1][0, :, -1].max() > 0.05
    with torch.no_grad():
        layer = model.model.layers[1]
        x = layer.post_attention_layernorm(out.hidden_states[1])[0]
        experts = layer.mlp.experts
        gate_up = x @ experts.gate_up_proj[0] + experts.gate_up_proj_bias[0]
    assert (gate_up[:, ::2] > 7).float().mean() > 0.005
    assert (gate_up[:, 1::2].abs() > 7).float().mean() > 0.005


def test_memory_stays_at_a_few_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_CHUNK_VALUES", 1 << 15)
    shape = replace(SMALL, vocab=1 << 16)
    tracemalloc.start()
    try:
        folder = write_checkpoint(tmp_path / "large", shape)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in folder.iterdir()) > 16e6
    assert peak < 6e6


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    folder = write_checkpoint(
        tmp_path / "made", SMALL, progress=lambda done, total: steps.append((done, total))
    )
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    assert steps[-1] == (index["metadata"]["total_size"],) * 2
    assert steps == sorted(steps)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "made", SMALL, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5, 5))
    with pytest.raises(GptOssError, match=r"made: takes \d+ bytes, but the disk has 5 free"):
        write_checkpoint(tmp_path / "made", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine", encoding="utf-8")
    with pytest.raises(GptOssError, match=r"tmp|exists already"):
        write_checkpoint(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_shape_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GptOssError, match="hidden_size is 100, not a multiple of 32"):
        write_checkpoint(tmp_path / "made", replace(SMALL, hidden=100))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_copies_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}", encoding="utf-8")
    options = ["--shape", "mini", "--layers", "2", "--vocab", "100", "--seed", "3"]
    made = tmp_path / "made"
    run = CliRunner().invoke(main, [str(made), *options, "--tokenizer", str(tokenizer)])
    assert (run.exit_code, run.output) == (0, "")
    assert (made / "tokenizer.json").read_text(encoding="utf-8") == "{}"
    with Checkpoint.open(made) as checkpoint:
        assert checkpoint.config.num_hidden_layers == 2
        assert checkpoint.config.vocab_size == 100


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, [str(tmp_path), "--shape", "mini"])
    assert run.exit_code == 1
    assert run.output == f"error: {tmp_path}: exists already\n"


def test_mini_is_a_model_that_generates(checkpoint_of: Callable[..., Path]) -> None:
    engine = gptoss_mlx.load(str(checkpoint_of(SHAPES["mini"])), context=256, backend="mlx")
    result = engine.generate("Hi", max_tokens=3, seed=1)
    assert (result.finish_reason, result.completion_tokens) == ("length", 3)
