"""gpt-oss in PyTorch at the tiny model's size, for training.

The arithmetic is that of the released models: RMSNorm, YaRN (correction range not rounded), grouped
queries, sliding and full layers in turn, one sink logit a head, top-4 of 8 experts, clamped SwiGLU.
Every expert is computed densely, which is faster than gathering at this size.  Parameters carry the
released names and shapes, gate and up rows interleaved, so that packing is a copy.  The network
works on the compact vocabulary; one extra logit stands for all the rows that are zero in the
full one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SWIGLU_ALPHA = 1.702
E2M1_MAX = 6.0


@dataclass(frozen=True)
class Shape:
    """The size of the network; the names follow config.json."""

    vocabulary: int  # rows that are stored
    full_vocabulary: int = 201088
    num_hidden_layers: int = 4
    hidden_size: int = 192
    intermediate_size: int = 128
    num_local_experts: int = 8
    num_experts_per_tok: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    sliding_window: int = 128
    rope_theta: float = 150000.0
    rope_factor: float = 32.0
    rope_original: int = 4096
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0

    def is_sliding(self, layer: int) -> bool:
        return layer % 2 == 0


def mxfp4_scale(blocks: Tensor) -> Tensor:
    """[..., 32] -> [..., 1], int32: the smallest power of two at which nothing is clipped."""
    mantissa, exponent = torch.frexp(blocks.abs().amax(-1, keepdim=True) / E2M1_MAX)
    return torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(-127, 127)


def mxfp4_round(weight: Tensor) -> Tensor:
    """Nearest MXFP4 value of each number, blocks of 32 along the last axis; float32 in and out.

    Ties go to the even code.
    """
    blocks = weight.detach().float().unflatten(-1, (-1, 32))
    exponent = mxfp4_scale(blocks)
    scaled = torch.ldexp(blocks, -exponent)
    # spacing of E2M1: 0.5 below 2, 1 below 4, 2 up to 6; torch.round is round-half-even
    size = scaled.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.ldexp(torch.round(scaled / step) * step, exponent).flatten(-2)


def fake_quantize(weight: Tensor) -> Tensor:
    """MXFP4 rounding in the forward pass, the identity in the backward pass."""
    return weight + (mxfp4_round(weight) - weight).detach()


def yarn_tables(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [length, head_dim / 2], with YaRN's attention factor in them."""
    half = shape.head_dim // 2
    base = math.log(shape.rope_theta)
    frequency = torch.exp(-torch.arange(half, dtype=torch.float64) * base / half)

    def turns(beta: float) -> float:
        return half * math.log(shape.rope_original / (beta * 2 * math.pi)) / base

    low, high = turns(shape.rope_beta_fast), turns(shape.rope_beta_slow)
    ramp = ((torch.arange(half, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    frequency = frequency / shape.rope_factor * ramp + frequency * (1 - ramp)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    factor = 0.1 * math.log(shape.rope_factor) + 1.0
    return (angle.cos() * factor).float(), (angle.sin() * factor).float()


def attention_mask(length: int, window: int | None) -> Tensor:
    """bool [length, length]: which key (column) a query (row) may see."""
    row = torch.arange(length)[:, None]
    column = torch.arange(length)[None]
    mask = column <= row
    return mask if window is None else mask & (row - column < window)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [batch, heads, length, head_dim]; the two halves of a head are its pairs."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _matrix(*size: int, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(*size) * gain / math.sqrt(size[-1]))


class Block(nn.Module):
    """One layer: attention with sinks, then the mixture of experts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden, experts, inner = (
            shape.hidden_size,
            shape.num_local_experts,
            shape.intermediate_size,
        )
        query = shape.num_attention_heads * shape.head_dim
        key = shape.num_key_value_heads * shape.head_dim
        small = 1 / math.sqrt(2 * shape.num_hidden_layers)
        self.input_layernorm = nn.Parameter(torch.ones(hidden))
        self.q_weight, self.q_bias = (
            _matrix(query, hidden, gain=0.5),
            nn.Parameter(torch.zeros(query)),
        )
        self.k_weight, self.k_bias = _matrix(key, hidden, gain=0.5), nn.Parameter(torch.zeros(key))
        self.v_weight, self.v_bias = _matrix(key, hidden), nn.Parameter(torch.zeros(key))
        self.o_weight = _matrix(hidden, query, gain=small)
        self.o_bias = nn.Parameter(torch.zeros(hidden))
        self.sinks = nn.Parameter(torch.zeros(shape.num_attention_heads))
        self.post_attention_layernorm = nn.Parameter(torch.ones(hidden))
        self.router_weight = _matrix(experts, hidden)
        self.router_bias = nn.Parameter(torch.zeros(experts))
        self.gate_up_weight = _matrix(experts, 2 * inner, hidden)
        self.gate_up_bias = nn.Parameter(torch.zeros(experts, 2 * inner))
        self.down_weight = _matrix(experts, hidden, inner, gain=small)
        self.down_bias = nn.Parameter(torch.zeros(experts, hidden))

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        s, (batch, length, _) = self.shape, x.shape
        heads, groups, size = s.num_attention_heads, s.num_key_value_heads, s.head_dim
        weight = torch.cat((self.q_weight, self.k_weight, self.v_weight))
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = (
            F.linear(x, weight, bias).view(batch, length, heads + 2 * groups, size).transpose(1, 2)
        )
        q, k, v = qkv.split((heads, groups, groups), 1)
        k, v = (t.repeat_interleave(heads // groups, 1) for t in (rotate(k, cos, sin), v))
        scores = rotate(q, cos, sin).to(v.dtype) @ k.to(v.dtype).transpose(-1, -2)
        scores = (scores.float() / math.sqrt(size)).masked_fill(~mask, -1e30)
        sinks = self.sinks.view(1, heads, 1, 1)
        top = torch.maximum(scores.amax(-1, keepdim=True), sinks).detach()
        weights = torch.exp(scores - top)
        weights = weights / (weights.sum(-1, keepdim=True) + torch.exp(sinks - top))
        out = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, length, heads * size)
        return F.linear(out, self.o_weight, self.o_bias)

    def experts(self, x: Tensor, routing: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """x [..., hidden], routing [..., experts]: all experts, weighted; unchosen ones by zero."""
        s = self.shape
        flat = gate_up.unflatten(1, (-1, 2)).transpose(0, 2).transpose(1, 2)  # [2, E, I, H]
        bias = self.gate_up_bias.unflatten(1, (-1, 2)).permute(2, 0, 1)  # [2, E, I]
        both = F.linear(x, flat.reshape(-1, s.hidden_size), bias.reshape(-1))
        gate, up = both.chunk(2, -1)
        gate = gate.clamp(max=s.swiglu_limit)
        up = up.clamp(-s.swiglu_limit, s.swiglu_limit)
        act = gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)
        act = (act.unflatten(-1, (s.num_local_experts, -1)) * routing[..., None]).flatten(-2)
        out = F.linear(act, down.transpose(0, 1).reshape(s.hidden_size, -1))
        return out + routing @ self.down_bias

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Dense routing weights and all probabilities, both [..., experts]."""
        with torch.autocast("cpu", enabled=False):
            logits = F.linear(x.float(), self.router_weight, self.router_bias)
        best, chosen = logits.topk(self.shape.num_experts_per_tok, -1)
        routing = torch.zeros_like(logits).scatter(-1, chosen, best.softmax(-1))
        return routing, logits.softmax(-1)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, gate_up: Tensor, down: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        eps = self.shape.rms_norm_eps
        x = x + self.attention(rms_norm(x, self.input_layernorm, eps), cos, sin, mask)
        t = rms_norm(x, self.post_attention_layernorm, eps)
        routing, probability = self.route(t)
        return x + self.experts(t, routing, gate_up, down), routing, probability


class Network(nn.Module):
    """The whole network on compact token ids; id -1 is an unknown token, which embeds to zero."""

    def __init__(self, shape: Shape, tokens: Tensor | None = None) -> None:
        """tokens: the embeddings to begin with, [vocabulary, hidden_size] of unit variance.

        The head begins aligned with them, so that copying a token is learned once for all.
        """
        super().__init__()
        self.shape = shape
        if tokens is None:
            tokens = torch.randn(shape.vocabulary, shape.hidden_size)
        self.embed_tokens = nn.Parameter(tokens)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.lm_head = nn.Parameter(tokens * 0.06)
        self.rest = math.log(shape.full_vocabulary - shape.vocabulary)

    @property
    def blocks(self) -> list[Block]:
        return [layer for layer in self.layers if isinstance(layer, Block)]

    def forward(
        self,
        ids: Tensor,
        quantize: bool = False,
        layers: Sequence[Callable[..., Any]] | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """ids [batch, length] -> hidden states after the last norm, and routing of each layer.

        `layers` may be compiled forms of the network's own.
        """
        length = ids.shape[1]
        cos, sin = yarn_tables(self.shape, length)
        masks = attention_mask(length, None), attention_mask(length, self.shape.sliding_window)
        x = F.embedding(ids.clamp(min=0), self.embed_tokens) * (ids >= 0)[..., None]
        routes = []
        for i, own in enumerate(self.blocks):
            layer = own if layers is None else layers[i]
            weights: tuple[Tensor, Tensor] = own.gate_up_weight, own.down_weight
            if quantize:
                weights = fake_quantize(weights[0]), fake_quantize(weights[1])
            mask = masks[self.shape.is_sliding(i)]
            x, routing, probability = layer(x, cos, sin, mask, *weights)
            routes.append((routing, probability))
        return rms_norm(x, self.norm, self.shape.rms_norm_eps), routes

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., vocabulary + 1]; the last one stands for all rows that are zero."""
        known = F.linear(hidden, self.lm_head).float()
        return torch.cat((known, torch.full_like(known[..., :1], self.rest)), -1)


def balance_loss(routes: list[tuple[Tensor, Tensor]], real: Tensor) -> Tensor:
    """1 when every expert gets an equal share over the tokens of `real` (bool [batch, length])."""
    total = torch.zeros(())
    for routing, probability in routes:
        share = (routing[real] > 0).float().mean(0)
        total = total + (share * probability[real].mean(0)).sum() * share.shape[0] / share.sum()
    return total / len(routes)
