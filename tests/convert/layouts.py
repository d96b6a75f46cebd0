"""A released checkpoint's folder, written once more in each of the other layouts.

Made from what OpenAI, mlx-lm and llama.cpp say of their formats and with their own libraries, and
apart from the converter: what it reads must give the released bytes again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tests.support.broken import write_shard
from tests.support.released_tensors import raw_tensors

Array = NDArray[Any]
Named = dict[str, tuple[str, Array]]
"""name -> (dtype, array), BF16 as uint16."""

MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}

_ORIGINAL = {
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
_OTHERS = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "unembedding.weight",
}


def config_of(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert isinstance(config, dict)
    return config


def write_original(source: Path, folder: Path, *, files: int = 1) -> Path:
    """OpenAI's own: `original/` of the release."""
    config = config_of(source)
    rope = config["rope_scaling"]
    own = {
        "num_hidden_layers": config["num_hidden_layers"],
        "num_experts": config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "swiglu_limit": config["swiglu_limit"],
        "head_dim": config["head_dim"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "sliding_window": config["sliding_window"],
        "initial_context_length": config["initial_context_length"],
        "rope_theta": config["rope_theta"],
        "rope_scaling_factor": rope["factor"],
        "rope_ntk_alpha": rope["beta_slow"],
        "rope_ntk_beta": rope["beta_fast"],
    }
    raw = raw_tensors(source)
    tensors: Named = {}
    for name, (dtype, values) in raw.items():
        if name in _OTHERS:
            tensors[_OTHERS[name]] = dtype, values
            continue
        _, _, layer, rest = name.split(".", 3)
        if rest in _ORIGINAL:
            tensors[f"block.{layer}.{_ORIGINAL[rest]}"] = dtype, values
        elif rest.startswith("self_attn.q_proj"):
            fused = [raw[name.replace("q_proj", f"{x}_proj")][1] for x in "qkv"]
            part = rest.rpartition(".")[2]
            tensors[f"block.{layer}.attn.qkv.{part}"] = dtype, np.concatenate(fused)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(own), encoding="utf-8")
    (folder / "dtypes.json").write_text("{}", encoding="utf-8")
    _write_safetensors(folder, tensors, files, "model--{:05d}-of-{:05d}.safetensors")
    return folder


def write_mlx_lm(
    source: Path,
    folder: Path,
    *,
    rest: int | None = None,
    experts: dict[str, Any] | None = None,
    files: int = 1,
) -> Path:
    """As mlx-lm saves it. rest: affine bits of everything besides the experts, None for bf16.

    experts: what the config says of the experts instead of mxfp4.
    """
    quantization: dict[str, Any] = dict(MXFP4)
    tensors: Named = {}
    for name, (dtype, values) in raw_tensors(source).items():
        module, _, part = name.rpartition(".")
        if module.endswith(".experts"):
            tensors |= _mlx_experts(module, part, dtype, values)
            for projection in ("gate_proj", "up_proj", "down_proj"):
                if experts is not None:
                    quantization[f"{module}.{projection}"] = experts
        elif rest is not None and values.ndim == 2 and values.shape[1] % 64 == 0:
            spec = {"group_size": 64, "bits": 8 if "router" in module else rest, "mode": "affine"}
            quantization[module] = spec
            weight = mx.array(values).view(mx.bfloat16)
            parts = mx.quantize(weight, group_size=64, bits=spec["bits"])
            tensors[f"{module}.weight"] = "U32", np.array(parts[0])
            tensors[f"{module}.scales"] = "BF16", np.array(parts[1].view(mx.uint16))
            tensors[f"{module}.biases"] = "BF16", np.array(parts[2].view(mx.uint16))
        else:
            tensors[name] = dtype, values
    config = config_of(source)
    config["quantization"] = config["quantization_config"] = quantization
    folder.mkdir(parents=True)
    text = json.dumps(dict(sorted(config.items())), indent=4)
    (folder / "config.json").write_text(text, encoding="utf-8")
    placed = _write_safetensors(
        folder, dict(sorted(tensors.items())), files, "model-{:05d}-of-{:05d}.safetensors"
    )
    total = sum(values.nbytes for _, values in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    text = json.dumps(index, indent=4)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return folder


def _mlx_experts(module: str, part: str, dtype: str, values: Array) -> Named:
    matrix, _, kind = part.rpartition("_")
    if kind == "blocks":
        dtype, values = "U32", values.reshape(*values.shape[:2], -1).view("<u4")
    kind = "weight" if kind == "blocks" else kind
    if matrix == "down_proj":
        return {f"{module}.down_proj.{kind}": (dtype, values)}
    return {
        f"{module}.gate_proj.{kind}": (dtype, values[:, 0::2]),
        f"{module}.up_proj.{kind}": (dtype, values[:, 1::2]),
    }


def write_gguf(
    source: Path,
    path: Path,
    *,
    rest: str = "BF16",
    experts: str = "MXFP4",
    parts: int = 1,
    extra: dict[str, Array] | None = None,
    kinds: dict[str, str] | None = None,
    metadata: dict[str, int] | None = None,
) -> Path:
    """As llama.cpp's converter writes it; returns the (first) file.

    rest: GGML type of the large matrices that are no experts'. experts: that of the experts.
    extra: float32 tensors more. kinds: types of single float32 tensors instead.
    metadata: integers in the place of the true ones.
    """
    config = config_of(source)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT_OSS, config["num_hidden_layers"])
    raw = raw_tensors(source)
    tensors: dict[str, tuple[str, Array]] = {}
    for name, (_, values) in raw.items():
        if name.endswith("_blocks"):
            scales = raw[name.removesuffix("_blocks") + "_scales"][1]
            tensors |= _gguf_experts(names, name, ggml_mxfp4(values, scales), experts)
        elif name.endswith("_bias") and ".experts." in name:
            tensors |= _gguf_experts(names, name, _floats(values), "F32")
        elif not name.endswith("_scales"):
            found = names.get_name(name, (".weight", ".bias"))
            small = values.ndim == 1 or "router" in name
            found = f"{found}.weight" if name.endswith("sinks") else found
            tensors[found] = _gguf_values(values, "F32" if small else rest)
    tensors |= {name: ("F32", values) for name, values in (extra or {}).items()}
    for name, kind in (kinds or {}).items():
        tensors[name] = kind, gguf.quantize(tensors[name][1], gguf.GGMLQuantizationType[kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    most = -(-len(tensors) // parts) if parts > 1 else 0
    writer = gguf.GGUFWriter(path, "gpt-oss", split_max_tensors=most)
    _gguf_metadata(writer, config, metadata or {})
    for name, (kind, values) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if parts == 1 else path.with_name(f"{path.stem}-00001-of-{parts:05d}.gguf")


def ggml_mxfp4(blocks: Array, scales: Array) -> Array:
    """The release's blocks [..., B, 16] and scales [..., B] -> GGML's rows, 17 B bytes each.

    A block of GGML's: the scale, then byte j with value j in its low half and j + 16 above.
    """
    codes = np.empty((*blocks.shape[:-1], 32), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = blocks % 16, blocks // 16
    packed = codes[..., :16] + 16 * codes[..., 16:]
    whole = np.concatenate((scales[..., None], packed), axis=-1)
    return whole.reshape(*blocks.shape[:-2], -1)


def _gguf_metadata(writer: gguf.GGUFWriter, config: dict[str, Any], own: dict[str, int]) -> None:
    rope = config["rope_scaling"]
    writer.add_name("random")
    writer.add_block_count(own.get("block_count", config["num_hidden_layers"]))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(own.get("embedding_length", config["hidden_size"]))
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(config["initial_context_length"])
    writer.add_token_list([f"token {i}" for i in range(4)])
    writer.add_token_types([1, 1, 3, 4])


def _gguf_experts(
    names: gguf.TensorNameMap, name: str, values: Array, kind: str
) -> dict[str, tuple[str, Array]]:
    """kind: of the matrices; any other than MXFP4 is made from their numbers."""
    module, _, part = name.rpartition(".")
    if kind not in ("MXFP4", "F32"):
        numbers = gguf.dequantize(values, gguf.GGMLQuantizationType.MXFP4)
        values = gguf.quantize(numbers, gguf.GGMLQuantizationType[kind])
    end = "bias" if part.endswith("_bias") else "weight"
    halves = {"down_proj": values}
    if part.startswith("gate_up"):
        halves = {"gate_proj": values[:, 0::2], "up_proj": values[:, 1::2]}
    return {
        f"{names.get_name(f'{module}.{half}')}.{end}": (kind, np.ascontiguousarray(rows))
        for half, rows in halves.items()
    }


def _gguf_values(values: Array, kind: str) -> tuple[str, Array]:
    if kind == "BF16":
        return kind, values.view(np.uint8)
    return kind, gguf.quantize(_floats(values), gguf.GGMLQuantizationType[kind])


def _floats(values: Array) -> Array:
    """bfloat16 as uint16 -> float32"""
    return (values.astype(np.uint32) << 16).view(np.float32)


def _write_safetensors(folder: Path, tensors: Named, files: int, pattern: str) -> dict[str, str]:
    """In `files` files of about as many tensors; the file of every tensor."""
    names = list(tensors)
    placed: dict[str, str] = {}
    for i, part in enumerate(np.array_split(names, files), 1):
        file = pattern.format(i, files) if files > 1 else "model.safetensors"
        shard = {
            name: (dtype, values.shape, np.ascontiguousarray(values).tobytes())
            for name, (dtype, values) in sorted(
                ((str(name), tensors[str(name)]) for name in part),
                key=lambda item: item[1][0] != "U32",  # at multiples of 4, whatever the sizes
            )
        }
        write_shard(folder / file, shard)
        placed |= dict.fromkeys(shard, file)
    return placed
