"""gpt-oss in float64 numpy, whole sequences at once: an oracle to read beside the formulas.

No cache, no chunks, no fused operations; weights come from `released_tensors`. Formulas: OpenAI,
gpt-oss/torch/model.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.released_tensors import Values, read_tensors


class NumpyGptOss:
    """weights: as read, and free to be changed by a test. config: config.json's fields.

    hold: what becomes of the keys and values [tokens, kv_heads, head_dim] of full-attention layers.
    """

    def __init__(self, folder: Path, hold: Callable[[Values], Values] | None = None) -> None:
        self.hold = hold or _as_is
        self.weights = read_tensors(folder)
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())

    def logits(self, ids: Sequence[int]) -> Values:
        """[tokens] -> [tokens, vocabulary]"""
        w, c = self.weights, self.config
        x = w["model.embed_tokens.weight"][list(ids)]
        cos, sin = rotation(c, len(ids))
        for layer, kind in enumerate(c["layer_types"]):
            part = _under(w, f"model.layers.{layer}.")
            slides = kind == "sliding_attention"
            window, hold = (c["sliding_window"], _as_is) if slides else (len(ids), self.hold)
            h = rms_norm(x, part["input_layernorm.weight"], c["rms_norm_eps"])
            x = x + attention(h, _under(part, "self_attn."), c, cos, sin, window, hold)
            h = rms_norm(x, part["post_attention_layernorm.weight"], c["rms_norm_eps"])
            x = x + mixture(h, _under(part, "mlp."), c)
        return rms_norm(x, w["model.norm.weight"], c["rms_norm_eps"]) @ w["lm_head.weight"].T


def _as_is(x: Values) -> Values:
    return x


def _under(weights: Mapping[str, Values], prefix: str) -> dict[str, Values]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def rms_norm(x: Values, weight: Values, eps: float) -> Values:
    y: Values = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight
    return y


def softmax(x: Values) -> Values:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: Values = e / e.sum(axis=-1, keepdims=True)
    return shares


def rotation(config: Mapping[str, Any], length: int) -> tuple[Values, Values]:
    """cos and sin, [tokens, head_dim / 2], with YaRN's magnitude on both."""
    half, theta, yarn = config["head_dim"] // 2, config["rope_theta"], config["rope_scaling"]
    turns = theta ** -(np.arange(half) / half)  # radians a token
    context = yarn["original_max_position_embeddings"]
    fast, slow = (
        half * math.log(context / (yarn[beta] * 2 * math.pi)) / math.log(theta)
        for beta in ("beta_fast", "beta_slow")
    )
    if yarn.get("truncate", True):
        fast, slow = math.floor(fast), math.ceil(slow)
    # Pairs up to `fast` turn as trained, pairs from `slow` on `factor` times slower.
    slowed = np.clip((np.arange(half) - fast) / (slow - fast), 0, 1)
    turns = turns * (1 - slowed) + turns / yarn["factor"] * slowed
    angle = np.arange(length)[:, None] * turns
    magnitude = 0.1 * math.log(yarn["factor"]) + 1
    return np.cos(angle) * magnitude, np.sin(angle) * magnitude


def rotate(x: Values, cos: Values, sin: Values) -> Values:
    """x [tokens, heads, head_dim]; pair i is made of dimensions i and i + head_dim / 2."""
    a, b = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(
    x: Values,
    w: Mapping[str, Values],
    config: Mapping[str, Any],
    cos: Values,
    sin: Values,
    window: int,
    hold: Callable[[Values], Values],
) -> Values:
    length, dim = len(x), config["head_dim"]
    q, k, v = (
        (x @ w[f"{n}_proj.weight"].T + w[f"{n}_proj.bias"]).reshape(length, -1, dim) for n in "qkv"
    )
    q, k, v = rotate(q, cos, sin), hold(rotate(k, cos, sin)), hold(v)
    group = q.shape[1] // k.shape[1]
    ago = np.arange(length)[:, None] - np.arange(length)  # [query, key]
    out = np.empty_like(q)
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].T / math.sqrt(dim)
        scores = np.where((ago >= 0) & (ago < window), scores, -np.inf)
        sink = np.full((length, 1), w["sinks"][head])
        weights = softmax(np.hstack([scores, sink]))[:, :-1]
        out[:, head] = weights @ v[:, head // group]
    return out.reshape(length, -1) @ w["o_proj.weight"].T + w["o_proj.bias"]


def swiglu(gate: Values, up: Values, limit: float = 7.0) -> Values:
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    y: Values = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
    return y


def expert(x: Values, w: Mapping[str, Values], e: int) -> Values:
    """x [tokens, hidden] -> expert e's output"""
    h = x @ w["experts.gate_up_proj"][e].T + w["experts.gate_up_proj_bias"][e]
    h = swiglu(h[:, 0::2], h[:, 1::2])
    y: Values = h @ w["experts.down_proj"][e].T + w["experts.down_proj_bias"][e]
    return y


def mixture(x: Values, w: Mapping[str, Values], config: Mapping[str, Any]) -> Values:
    scores = x @ w["router.weight"].T + w["router.bias"]
    chosen = np.argsort(-scores, axis=-1)[:, : config["num_experts_per_tok"]]
    weights = softmax(np.take_along_axis(scores, chosen, axis=-1))
    out = np.zeros_like(x)
    for e in range(scores.shape[-1]):
        tokens, places = np.nonzero(chosen == e)
        out[tokens] += expert(x[tokens], w, e) * weights[tokens, places][:, None]
    return out
