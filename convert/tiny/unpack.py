"""Unpacks a packed model into a network, so that training can go on with a wider vocabulary.

Every number is the one that was stored: experts decoded from MXFP4, the rest from bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from convert.tiny.beginning import spelled
from convert.tiny.network import Network
from gptoss_mlx.backends.torch.mxfp4 import dequantize
from gptoss_mlx.harmony import Encoding

RIDGE = 0.1
"""Ridge penalty of the map from spellings to rows: a part of the features' mean variance."""


def from_bits(bits: Tensor) -> Tensor:
    """uint16, the bits of bfloat16 -> float32 of the same shape."""
    return bits.view(torch.bfloat16).float()


@torch.no_grad()
def take_over(network: Network, rows: list[int], encoding: Encoding, path: Path) -> int:
    """Set a network's weights to those of a packed file; returns how many rows the file lacked.

    Both tables are found by token id. A row that the file does not have is predicted from its
    spelling, by a linear map fitted to the rows it has: a new number begins near those that share
    its digits. Raises KeyError or RuntimeError where the file is of another shape.
    """
    stored = load_file(path)
    old = {int(row): i for i, row in enumerate(stored["rows"])}
    known = [i for i, row in enumerate(rows) if row in old]
    lacking = [i for i, row in enumerate(rows) if row not in old]
    spelling = spelled(encoding, rows, network.shape.hidden_size)
    features = spelling[known]
    gram = features.T @ features
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    for name in ("embed_tokens", "lm_head"):
        table = getattr(network, name)
        file_name = f"{'model.' if name == 'embed_tokens' else ''}{name}.weight"
        table[known] = from_bits(stored[file_name])[[old[rows[i]] for i in known]]
        table[lacking] = spelling[lacking] @ torch.linalg.solve(gram, features.T @ table[known])
    network.norm.copy_(from_bits(stored["model.norm.weight"]))
    for number, layer in enumerate(network.blocks):
        prefix = f"model.layers.{number}."
        for name, parameter in layer.named_parameters():
            if name in ("gate_up_weight", "down_weight"):
                file_name = f"{prefix}mlp.experts.{name.removesuffix('_weight')}_proj"
                blocks, scales = stored[f"{file_name}_blocks"], stored[f"{file_name}_scales"]
                parameter.copy_(dequantize(blocks, scales, packed=False))
            else:
                parameter.copy_(from_bits(stored[prefix + stored_name(name)]))
    return len(lacking)


def stored_name(name: str) -> str:
    """A layer's parameter under its released name, for what is not MXFP4."""
    part, _, kind = name.rpartition("_")
    if part in tuple("qkvo"):
        return f"self_attn.{part}_proj.{kind}"
    if part == "router":
        return f"mlp.router.{kind}"
    if kind == "bias":
        return f"mlp.experts.{part}_proj_bias"
    return "self_attn.sinks" if name == "sinks" else f"{name}.weight"
