"""ModelConfig: the released configs are read exactly; every other kind is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.errors import ConfigError
from gptoss_mlx.spec.config import ModelConfig, QuantizationSpec, Yarn
from gptoss_mlx.spec.released import CONFIGS

REMOVED = object()


def released() -> dict[str, Any]:
    fields = json.loads(CONFIGS["openai/gpt-oss-20b"].read_text(encoding="utf-8"))
    assert isinstance(fields, dict)
    return fields


def read(tmp_path: Path, **changes: Any) -> ModelConfig:
    fields = {**released(), **changes}
    fields = {name: value for name, value in fields.items() if value is not REMOVED}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return ModelConfig.from_file(path)


def yarn(**changes: Any) -> dict[str, Any]:
    fields = {**released()["rope_scaling"], **changes}
    return {name: value for name, value in fields.items() if value is not REMOVED}


@pytest.mark.parametrize(("name", "layers", "experts"), [("20b", 24, 32), ("120b", 36, 128)])
def test_released_configs_are_read_exactly(name: str, layers: int, experts: int) -> None:
    config = ModelConfig.from_file(CONFIGS[f"openai/gpt-oss-{name}"])
    assert config == ModelConfig(
        num_hidden_layers=layers,
        hidden_size=2880,
        intermediate_size=2880,
        num_local_experts=experts,
        num_experts_per_tok=4,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=201088,
        sliding_window=128,
        layer_types=("sliding_attention", "full_attention") * (layers // 2),
        rope_theta=150000.0,
        rope_scaling=Yarn(32.0, 4096, 32.0, 1.0, False),
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        swiglu_limit=7.0,
        eos_token_id=200002,
        quantization=None,
    )
    assert [config.is_sliding(layer) for layer in range(4)] == [True, False, True, False]


def test_rope_parameters_say_the_same_as_rope_scaling(tmp_path: Path) -> None:
    parameters = {**yarn(), "rope_theta": 150000}
    config = read(tmp_path, rope_parameters=parameters, rope_scaling=REMOVED, rope_theta=REMOVED)
    assert config == read(tmp_path)


def test_rope_may_be_unscaled(tmp_path: Path) -> None:
    assert read(tmp_path, rope_scaling=None).rope_scaling is None
    default = {"rope_type": "default", "rope_theta": 10000.0}
    config = read(tmp_path, rope_parameters=default, rope_scaling=REMOVED)
    assert (config.rope_scaling, config.rope_theta) == (None, 10000.0)


def test_layers_alternate_where_the_file_does_not_say(tmp_path: Path) -> None:
    assert read(tmp_path, layer_types=REMOVED) == read(tmp_path)


def test_an_eos_list_gives_its_first(tmp_path: Path) -> None:
    assert read(tmp_path, eos_token_id=[200002, 199999]).eos_token_id == 200002


def test_quantization_by_module_and_default(tmp_path: Path) -> None:
    section = {
        "group_size": 64,
        "bits": 8,
        "mode": "affine",
        "lm_head": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
        "model.layers.0.mlp.router": False,
        "model.embed_tokens": True,
    }
    quantization = read(tmp_path, quantization=section).quantization
    assert quantization is not None
    default = QuantizationSpec(8, 64, "affine")
    assert quantization.of("model.layers.3.self_attn.q_proj") == default
    assert quantization.of("model.embed_tokens") == default
    assert quantization.of("lm_head") == QuantizationSpec(4, 32, "mxfp4")
    assert quantization.of("model.layers.0.mlp.router") is None


def test_quantization_without_a_default_keeps_the_rest(tmp_path: Path) -> None:
    config = read(tmp_path, quantization={"lm_head": {"group_size": 64, "bits": 4}})
    assert config.quantization is not None
    assert config.quantization.of("lm_head") == QuantizationSpec(4, 64, "affine")
    assert config.quantization.of("model.embed_tokens") is None


BAD: list[tuple[str, Any, str]] = [
    ("model_type", "llama", "model_type is 'llama', only 'gpt_oss'"),
    ("model_type", REMOVED, "model_type is None"),
    ("architectures", ["LlamaForCausalLM"], "architectures is ['LlamaForCausalLM']"),
    ("hidden_act", "gelu", "hidden_act is 'gelu', only 'silu'"),
    ("attention_bias", False, "attention_bias is False, only True"),
    ("tie_word_embeddings", True, "tie_word_embeddings is True, only False"),
    ("hidden_size", 2881, "hidden_size is 2881, not a multiple of 32"),
    ("hidden_size", 0, "hidden_size is 0, not within 32 to 65536"),
    ("hidden_size", 10**30, "not within 32 to 65536"),
    ("hidden_size", "2880", "hidden_size is '2880', not an integer"),
    ("hidden_size", True, "hidden_size is True, not an integer"),
    ("hidden_size", 2880.0, "hidden_size is 2880.0, not an integer"),
    ("hidden_size", None, "hidden_size is missing"),
    ("intermediate_size", 48, "intermediate_size is 48, not a multiple of 32"),
    ("head_dim", 63, "head_dim is 63, not a multiple of 2"),
    ("num_attention_heads", 60, "is 60, not a multiple of num_key_value_heads 8"),
    ("num_key_value_heads", 0, "num_key_value_heads is 0"),
    ("num_experts_per_tok", 33, "is 33, more than num_local_experts 32"),
    ("num_local_experts", -1, "num_local_experts is -1"),
    ("num_hidden_layers", 23, "layer_types names 24 layers of 23"),
    ("layer_types", "full_attention", "layer_types is 'full_attention', not a list"),
    ("layer_types", ["linear"] * 24, "layer_types[0] is 'linear', neither"),
    ("vocab_size", 200000, "eos_token_id is 200002, not below vocab_size 200000"),
    ("eos_token_id", [], "eos_token_id is [], not an integer"),
    ("eos_token_id", [-1], "eos_token_id[0] is -1"),
    ("sliding_window", 0, "sliding_window is 0"),
    ("max_position_embeddings", 0, "max_position_embeddings is 0"),
    ("rms_norm_eps", 0.0, "rms_norm_eps is 0.0"),
    ("rms_norm_eps", float("nan"), "NaN is no number of JSON"),
    ("rope_theta", float("inf"), "Infinity is no number of JSON"),
    ("rope_theta", 1, "rope_theta is 1, not within 2 to 1e+12"),
    ("attention_bias", 1, "attention_bias is 1, only True"),
    ("hidden_size", 10**4000, "hidden_size is <a number of 13288 bits>, not within 32 to"),
    ("rope_theta", REMOVED, "rope_theta is missing"),
    ("swiglu_limit", "7", "swiglu_limit is '7', not a number"),
    ("rope_scaling", [], "rope_scaling is [], not an object"),
    ("rope_scaling", yarn(rope_type="linear"), "rope_scaling.rope_type is 'linear'"),
    ("rope_scaling", yarn(factor=0.5), "rope_scaling.factor is 0.5"),
    ("rope_scaling", yarn(factor=REMOVED), "rope_scaling.factor is missing"),
    ("rope_scaling", yarn(truncate=0), "rope_scaling.truncate is 0, not true or false"),
    ("rope_scaling", yarn(beta_fast=0.5), "beta_fast is 0.5, below beta_slow 1"),
    ("rope_scaling", yarn(mscale=0.7), "'mscale' is 0.7, which is not supported"),
    ("quantization_config", {"quant_method": "gptq"}, "quant_method is 'gptq', only 'mxfp4'"),
    ("quantization", {"bits": 7, "group_size": 64}, "quantization.bits is 7 with group_size 64"),
    ("quantization", {"bits": 8, "group_size": 64, "mode": "nf4"}, "quantization.mode is 'nf4'"),
    ("quantization", {"bits": 8}, "quantization.group_size is missing"),
    (
        "quantization",
        {"lm_head": {"bits": 8, "group_size": 32, "mode": "mxfp4"}},
        "quantization.lm_head.bits is 8 with group_size 32, which mxfp4 does not have",
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_bad_field_is_refused_by_file_name_and_value(
    tmp_path: Path, name: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **{name: value})
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'config.json'}: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "name",
    [
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_local_experts",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "sliding_window",
        "max_position_embeddings",
        "rms_norm_eps",
        "eos_token_id",
    ],
)
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json: {name} is missing"):
        read(tmp_path, **{name: REMOVED})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1, 2]", "holds a list, not a JSON object"),
        (b'{"a": 1, "a": 2}', "the name 'a' occurs twice"),
        (b" " * (5 << 20), "cannot be read: larger than 4,194,304 bytes"),
        (b'{"hidden_size": 1' + b"0" * 5000 + b"}", "is not valid JSON"),
    ],
    ids=["empty", "cut", "utf-16", "deep", "list", "twice", "huge", "long-number"],
)
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_file(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "x" * 3_000_000},
        {"quantization": {"x" * 3_000_000: {"bits": 1, "group_size": 64}}},
        {"layer_types": [["x"] * 20_000] * 24},
        {"rope_scaling": {"x" * 3_000_000: 1, "rope_type": "yarn"}},
    ],
    ids=["text", "name", "list", "name of a section"],
)
def test_a_long_value_is_quoted_short(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **changes)
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


def test_a_window_beyond_the_context_is_the_context(tmp_path: Path) -> None:
    assert read(tmp_path, sliding_window=1 << 24).sliding_window == 131072
    assert read(tmp_path, sliding_window=1 << 16).sliding_window == 1 << 16


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read: No such file"):
        ModelConfig.from_file(tmp_path / "config.json")
