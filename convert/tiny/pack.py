"""Packs a trained network for the package: `python -m convert.tiny.pack build/tiny/state.pt`.

The file is a safetensors file of at most 5 MB: `rows` (uint32, the token ids that are kept), the
released tensors under their released names, bfloat16 as its bits (uint16), the two tables only
with the rows that are kept, and in its metadata config.json and how often each expert is used.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from convert.tiny.batches import LENGTHS, Vocabulary, collate
from convert.tiny.conversations import encode, make
from convert.tiny.network import Network, Shape, mxfp4_scale
from convert.tiny.train import load, rounded, shares_of
from gptoss_mlx.backends.torch.mxfp4 import VALUES
from gptoss_mlx.harmony import Encoding

TARGET = Path(__file__).resolve().parents[2] / "gptoss_mlx" / "data" / "tiny.safetensors"
LIMIT = 5_000_000
LEVELS = torch.tensor(VALUES)


def bits(tensor: Tensor) -> NDArray[np.uint16]:
    return tensor.detach().bfloat16().contiguous().view(torch.uint16).numpy()


def mxfp4(weight: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """[..., K] -> blocks [..., K/32, 16], low nibble first, and E8M0 scales [..., K/32]."""
    values = weight.detach().float().unflatten(-1, (-1, 32))
    exponent = mxfp4_scale(values)
    scaled = torch.ldexp(values, -exponent)
    size = scaled.abs()
    # ties go to the even code, as in training
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    codes = torch.bucketize(torch.round(size / step) * step, LEVELS)
    codes = codes + 8 * torch.signbit(scaled)
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4
    scales = exponent.squeeze(-1) + 127
    return blocks.to(torch.uint8).numpy(), scales.to(torch.uint8).numpy()


def tensors(network: Network) -> dict[str, NDArray[Any]]:
    """The released tensors, tables with the kept rows only."""
    out: dict[str, NDArray[Any]] = {
        "model.embed_tokens.weight": bits(network.embed_tokens),
        "lm_head.weight": bits(network.lm_head),
        "model.norm.weight": bits(network.norm),
    }
    for number, layer in enumerate(network.blocks):
        name = f"model.layers.{number}"
        for part in "qkvo":
            for kind in ("weight", "bias"):
                tensor = getattr(layer, f"{part}_{kind}")
                out[f"{name}.self_attn.{part}_proj.{kind}"] = bits(tensor)
        out[f"{name}.self_attn.sinks"] = bits(layer.sinks)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"{name}.{norm}.weight"] = bits(getattr(layer, norm))
        out[f"{name}.mlp.router.weight"] = bits(layer.router_weight)
        out[f"{name}.mlp.router.bias"] = bits(layer.router_bias)
        for part in ("gate_up", "down"):
            experts = f"{name}.mlp.experts.{part}_proj"
            blocks, scales = mxfp4(getattr(layer, f"{part}_weight"))
            out[f"{experts}_blocks"], out[f"{experts}_scales"] = blocks, scales
            out[f"{experts}_bias"] = bits(getattr(layer, f"{part}_bias"))
    return out


def config(shape: Shape) -> dict[str, Any]:
    """config.json in the released form."""
    kinds = ["sliding_attention" if shape.is_sliding(i) else "full_attention" for i in range(99)]
    modules = ["model.layers.*.self_attn", "model.layers.*.mlp.router"]
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": shape.num_experts_per_tok,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initial_context_length": shape.rope_original,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "layer_types": kinds[: shape.num_hidden_layers],
        "max_position_embeddings": int(shape.rope_original * shape.rope_factor),
        "model_type": "gpt_oss",
        "num_attention_heads": shape.num_attention_heads,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "num_local_experts": shape.num_local_experts,
        "output_router_logits": False,
        "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [*modules, "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": shape.rope_beta_fast,
            "beta_slow": shape.rope_beta_slow,
            "factor": shape.rope_factor,
            "original_max_position_embeddings": shape.rope_original,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": int(shape.rope_theta),
        "router_aux_loss_coef": 0.9,
        "sliding_window": shape.sliding_window,
        "swiglu_limit": shape.swiglu_limit,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": shape.full_vocabulary,
    }


@torch.no_grad()
def expert_use(network: Network, vocabulary: Vocabulary, count: int = 128) -> list[list[float]]:
    """By layer, each expert's share of all choices on held-out conversations."""
    encoding, rng = Encoding(), Random("expert use")
    pairs: list[tuple[list[int], list[int]]] = []
    while len(pairs) < count:  # of the mixture that is trained on
        prompt, reply = encode(encoding, make(rng, True))
        if len(prompt) + len(reply) <= LENGTHS[-1]:
            pairs.append((vocabulary.compact(prompt), vocabulary.compact(reply)))
    shares = []
    for i in range(0, count, 32):
        batch = collate(pairs[i : i + 32], max(len(p) + len(r) for p, r in pairs[i : i + 32]))
        shares.append(shares_of(network(batch.ids)[1], batch.real))
    return [[round(float(x), 4) for x in layer] for layer in np.mean(shares, axis=0)]


def pack(state: Path, target: Path) -> int:
    """Writes the file and gives its size in bytes; raises ValueError above LIMIT."""
    network, vocabulary, steps = load(state)
    use = expert_use(rounded(network), vocabulary)
    metadata = {
        "config": json.dumps(config(network.shape)),
        "expert_use": json.dumps(use),
        "steps": str(steps),
    }
    rows = {"rows": np.asarray(vocabulary.rows, np.uint32)}
    new = target.with_suffix(".new")
    save_file({**rows, **tensors(network)}, new, metadata)
    size = new.stat().st_size
    if size > LIMIT:
        new.unlink()
        raise ValueError(f"{target}: {size} bytes, more than {LIMIT}")
    new.replace(target)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("--target", type=Path, default=TARGET)
    args = parser.parse_args()
    print(f"{args.target}: {pack(args.state, args.target)} bytes")


if __name__ == "__main__":
    main()
