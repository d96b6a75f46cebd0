"""OpenAI's own layout, `original/` in the release: q, k and v fused, other names and config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import read_json
from gptoss_mlx.files.regular import is_named
from gptoss_mlx.models.checkpoint import expected_tensors
from gptoss_mlx.spec.config import ModelConfig

from ..piece import Piece
from ..source import Inputs, Source, read_files
from .standard import check_number, released_config_of, tokenizer_files

_NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "unembedding.weight",
    "input_layernorm.weight": "attn.norm.scale",
    "self_attn.o_proj.weight": "attn.out.weight",
    "self_attn.o_proj.bias": "attn.out.bias",
    "self_attn.sinks": "attn.sinks",
    "post_attention_layernorm.weight": "mlp.norm.scale",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.bias": "mlp.gate.bias",
    "mlp.experts.gate_up_proj_blocks": "mlp.mlp1_weight.blocks",
    "mlp.experts.gate_up_proj_scales": "mlp.mlp1_weight.scales",
    "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
    "mlp.experts.down_proj_blocks": "mlp.mlp2_weight.blocks",
    "mlp.experts.down_proj_scales": "mlp.mlp2_weight.scales",
    "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
}
_FIELDS = {
    "num_hidden_layers": "num_hidden_layers",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "experts_per_token",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "head_dim": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window": "sliding_window",
    "rope_theta": "rope_theta",
    "initial_context_length": "initial_context_length",
}


def matches(path: Path) -> bool:
    config = path / "config.json"
    return (
        is_named(config)
        and "num_experts" in (values := read_json(config))
        and ("model_type" not in values)
    )


def read(path: Path, exact: bool) -> Source:
    """The source at a path. Raises CheckpointError."""
    config_path = path / "config.json"
    config = _config(config_path)
    model = ModelConfig.from_values(config, config_path)
    files = sorted(path.glob("*.safetensors"))
    inputs = Inputs(path, read_files(files))
    pieces = {
        name: _qkv(inputs, model, name, dtype, shape)
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
        else Piece(dtype, shape, (inputs.take(original_name(name), dtype, shape),))
        for name, (dtype, shape) in expected_tensors(model, config_path).items()
    }
    inputs.check_all_taken()
    return Source(
        kind="original",
        name=path.resolve().name,
        paths=(config_path, *files),
        config=config,
        pieces=pieces,
        exact=True,
        written=tokenizer_files(model),
    )


def original_name(name: str) -> str:
    """ "model.layers.3.self_attn.sinks" -> "block.3.attn.sinks"."""
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"block.{layer}.{_NAMES[rest]}"


def _qkv(
    inputs: Inputs, model: ModelConfig, name: str, dtype: str, shape: tuple[int, ...]
) -> Piece:
    """A run of rows of the fused projection, which has q's rows, then k's, then v's."""
    _, _, layer, _, projection, part = name.split(".")
    width = model.num_attention_heads * model.head_dim
    kv_width = model.num_key_value_heads * model.head_dim
    begin = {"q_proj": 0, "k_proj": width, "v_proj": width + kv_width}[projection]
    whole = (width + 2 * kv_width, *shape[1:])
    fused = inputs.take(f"block.{layer}.attn.qkv.{part}", dtype, whole)
    return Piece(dtype, shape, (fused.rows(begin, begin + shape[0]),))


def _config(path: Path) -> dict[str, Any]:
    """The released config.json that this one stands for."""
    own = read_json(path)
    missing = [name for name in _FIELDS.values() if name not in own]
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} is missing")
    fields = {name: own[other] for name, other in _FIELDS.items()}
    return released_config_of(
        path,
        fields,
        yarn={
            "factor": _number(path, own, "rope_scaling_factor", 32.0),
            "beta_slow": _number(path, own, "rope_ntk_alpha", 1.0),
            "beta_fast": _number(path, own, "rope_ntk_beta", 32.0),
        },
        swiglu_limit=_number(path, own, "swiglu_limit", 7.0),
    )


def _number(path: Path, values: Mapping[str, Any], name: str, default: float) -> float:
    value = values.get(name, default)
    check_number(path, name, value)
    return float(value)
