"""A gpt-oss config.json, read once into a frozen `ModelConfig`.

Whatever `ModelConfig.from_file` returns is complete, in range and consistent; anything else
raises ConfigError naming the file, the field, its value and the limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gptoss_mlx.errors import CheckpointError, ConfigError
from gptoss_mlx.files.jsonfile import read_json, shown

ARCHITECTURE = "GptOssForCausalLM"
MODEL_TYPE = "gpt_oss"
SLIDING = "sliding_attention"
FULL = "full_attention"
MXFP4_BLOCK = 32
"""Values that share one scale; the experts' input sizes are multiples of it."""

_AFFINE = {(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)}
_MODES = {"affine": _AFFINE, "mxfp4": {(4, 32)}, "mxfp8": {(8, 32)}, "nvfp4": {(4, 16)}}
_YARN_FIELDS = {
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "truncate",
    "rope_type",
    "type",
    "rope_theta",
}
# Values that the model's arithmetic assumes; a config with others is another model's.
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": True,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Yarn:
    """YaRN's RoPE scaling, under its names in config.json."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclass(frozen=True)
class QuantizationSpec:
    """How MLX quantized one module: bits a value, values a group, and the mode."""

    bits: int
    group_size: int
    mode: str


@dataclass(frozen=True)
class Quantization:
    """Which modules besides the experts are quantized; None means kept in bf16."""

    default: QuantizationSpec | None
    modules: Mapping[str, QuantizationSpec | None]

    def of(self, module: str) -> QuantizationSpec | None:
        """The spec of a module such as "model.layers.0.self_attn.q_proj"."""
        return self.modules.get(module, self.default)


@dataclass(frozen=True)
class ModelConfig:
    """The shape and constants of a gpt-oss model, under their names in config.json."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_local_experts: int
    num_experts_per_tok: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    sliding_window: int
    layer_types: tuple[str, ...]
    rope_theta: float
    rope_scaling: Yarn | None
    max_position_embeddings: int
    rms_norm_eps: float
    swiglu_limit: float
    eos_token_id: int
    quantization: Quantization | None

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read and check a config.json. Raises ConfigError."""
        try:
            values = read_json(path)
        except ConfigError:
            raise
        except CheckpointError as error:
            raise ConfigError(str(error)) from error
        return cls.from_values(values, path)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], path: Path) -> ModelConfig:
        """Check the content of a config.json; `path` opens messages. Raises ConfigError."""
        return _model_config(_Fields(path, values))

    def is_sliding(self, layer: int) -> bool:
        """Whether a layer attends to the sliding window only."""
        return self.layer_types[layer] == SLIDING


@dataclass(frozen=True)
class _Fields:
    """The fields of one JSON object with typed, range-checked access."""

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""

    def fail(self, name: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.path}: {self.prefix}{name} {problem}")

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.values.get(name, default)
        if value is None:
            raise self.fail(name, "is missing")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(name, f"is {shown(value)}, not an integer")
        if not low <= value <= high:
            raise self.fail(name, f"is {shown(value)}, not within {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        value = self.values.get(name, default)
        if value is None:
            raise self.fail(name, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(name, f"is {shown(value)}, not a number")
        if not (low <= value <= high and math.isfinite(value)):
            raise self.fail(name, f"is {shown(value)}, not within {low:g} to {high:g}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, f"is {shown(value)}, not true or false")
        return value

    def section(self, name: str) -> _Fields | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(name, f"is {shown(value)}, not an object")
        return _Fields(self.path, value, f"{self.prefix}{shown(name)[1:-1]}.")


def _model_config(fields: _Fields) -> ModelConfig:
    _check_architecture(fields)
    layers = fields.integer("num_hidden_layers", 1, 1024)
    rope = fields.section("rope_parameters") or fields.section("rope_scaling")
    theta_from = rope if rope is not None and "rope_theta" in rope.values else fields
    positions = fields.integer("max_position_embeddings", 1, 1 << 30)
    config = ModelConfig(
        num_hidden_layers=layers,
        hidden_size=_multiple(fields, "hidden_size", MXFP4_BLOCK, 1 << 16),
        intermediate_size=_multiple(fields, "intermediate_size", MXFP4_BLOCK, 1 << 16),
        num_local_experts=fields.integer("num_local_experts", 1, 4096),
        num_experts_per_tok=_experts_per_token(fields),
        num_attention_heads=fields.integer("num_attention_heads", 1, 1024),
        num_key_value_heads=fields.integer("num_key_value_heads", 1, 1024),
        head_dim=_multiple(fields, "head_dim", 2, 1024),
        vocab_size=fields.integer("vocab_size", 1, 1 << 24),
        # A window beyond the context hides nothing, but would be allocated.
        sliding_window=min(fields.integer("sliding_window", 1, 1 << 24), positions),
        layer_types=_layer_types(fields, layers),
        rope_theta=theta_from.number("rope_theta", 2.0, 1e12),
        rope_scaling=_yarn(fields, rope),
        max_position_embeddings=positions,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-12, 1.0),
        swiglu_limit=fields.number("swiglu_limit", 1e-3, 1e6, default=7.0),
        eos_token_id=_eos(fields),
        quantization=_quantization(fields),
    )
    _check_consistency(fields, config)
    return config


def _check_architecture(fields: _Fields) -> None:
    model_type = fields.values.get("model_type")
    if model_type != MODEL_TYPE:
        raise fields.fail("model_type", f"is {shown(model_type)}, only {MODEL_TYPE!r} can be run")
    architectures = fields.values.get("architectures", [ARCHITECTURE])
    if architectures != [ARCHITECTURE]:
        raise fields.fail(
            "architectures", f"is {shown(architectures)}, only [{ARCHITECTURE!r}] can be run"
        )
    for name, wanted in _FIXED.items():
        value = fields.values.get(name, wanted)
        if value != wanted or type(value) is not type(wanted):
            raise fields.fail(name, f"is {shown(value)}, only {wanted!r} can be run")


def _multiple(fields: _Fields, name: str, step: int, high: int) -> int:
    value = fields.integer(name, step, high)
    if value % step:
        raise fields.fail(name, f"is {value}, not a multiple of {step}")
    return value


def _experts_per_token(fields: _Fields) -> int:
    other = "experts_per_token"
    name = "num_experts_per_tok" if "num_experts_per_tok" in fields.values else other
    return fields.integer(name, 1, 4096)


def _layer_types(fields: _Fields, layers: int) -> tuple[str, ...]:
    value = fields.values.get("layer_types")
    if value is None:
        return tuple(FULL if layer % 2 else SLIDING for layer in range(layers))
    if not isinstance(value, list):
        raise fields.fail("layer_types", f"is {shown(value)}, not a list")
    if len(value) != layers:
        raise fields.fail("layer_types", f"names {len(value)} layers of {layers}")
    for layer, kind in enumerate(value):
        if kind not in (SLIDING, FULL):
            raise fields.fail(
                f"layer_types[{layer}]", f"is {shown(kind)}, neither {SLIDING!r} nor {FULL!r}"
            )
    return tuple(value)


def _yarn(fields: _Fields, rope: _Fields | None) -> Yarn | None:
    if rope is None:
        return None
    kind = rope.values.get("rope_type", rope.values.get("type"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise rope.fail("rope_type", f"is {shown(kind)}, neither 'yarn' nor 'default'")
    for name, value in rope.values.items():
        if name not in _YARN_FIELDS and value is not None:
            raise rope.fail(shown(name), f"is {shown(value)}, which is not supported")
    original = "original_max_position_embeddings"
    inherited = fields.values.get("initial_context_length")
    yarn = Yarn(
        factor=rope.number("factor", 1.0, 1e6),
        original_max_position_embeddings=rope.integer(original, 1, 1 << 30, inherited),
        beta_fast=rope.number("beta_fast", 1e-6, 1e6, 32.0),
        beta_slow=rope.number("beta_slow", 1e-6, 1e6, 1.0),
        truncate=rope.boolean("truncate", True),
    )
    if yarn.beta_fast < yarn.beta_slow:
        raise rope.fail("beta_fast", f"is {yarn.beta_fast:g}, below beta_slow {yarn.beta_slow:g}")
    return yarn


def _eos(fields: _Fields) -> int:
    value = fields.values.get("eos_token_id")
    # Other tools write the list of generation_config.json here; its first is the model's own.
    if isinstance(value, list) and value:
        first = _Fields(fields.path, {"eos_token_id[0]": value[0]})
        return first.integer("eos_token_id[0]", 0, 1 << 24)
    return fields.integer("eos_token_id", 0, 1 << 24)


def _quantization(fields: _Fields) -> Quantization | None:
    section = fields.section("quantization")
    if section is None:
        released = fields.section("quantization_config")
        method = "mxfp4" if released is None else released.values.get("quant_method")
        if released is not None and method != "mxfp4":
            raise released.fail("quant_method", f"is {shown(method)}, only 'mxfp4' can be run")
        return None
    modules: dict[str, QuantizationSpec | None] = {}
    for name, value in section.values.items():
        if isinstance(value, dict):
            entry = section.section(name)
            assert entry is not None
            modules[name] = _spec(entry)
        elif value is False:
            modules[name] = None
        elif value is True:
            modules[name] = _spec(section)
    default = _spec(section) if "bits" in section.values else None
    return Quantization(default=default, modules=MappingProxyType(modules))


def _spec(fields: _Fields) -> QuantizationSpec:
    mode = fields.values.get("mode", "affine")
    if not isinstance(mode, str) or mode not in _MODES:
        raise fields.fail("mode", f"is {shown(mode)}, none of {', '.join(_MODES)}")
    bits = fields.integer("bits", 1, 8)
    group = fields.integer("group_size", 16, 128)
    if (bits, group) not in _MODES[mode]:
        raise fields.fail("bits", f"is {bits} with group_size {group}, which {mode} does not have")
    return QuantizationSpec(bits=bits, group_size=group, mode=mode)


def _check_consistency(fields: _Fields, config: ModelConfig) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise fields.fail(
            "num_attention_heads", f"is {heads}, not a multiple of num_key_value_heads {kv_heads}"
        )
    active, experts = config.num_experts_per_tok, config.num_local_experts
    if active > experts:
        raise fields.fail(
            "num_experts_per_tok", f"is {active}, more than num_local_experts {experts}"
        )
    if config.eos_token_id >= config.vocab_size:
        raise fields.fail(
            "eos_token_id", f"is {config.eos_token_id}, not below vocab_size {config.vocab_size}"
        )
