"""The reference implementation of every operation of the model, in plain PyTorch.

The Triton kernels must agree with it. It runs on any device and in any dtype. Linear layers and
experts are multiplied in the operands' dtype, everything else is computed in float32. The tokens of
a call are a chunk of one sequence or one token of each of several; the operations treat both alike.
Indices are int32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from gptoss_mlx.backends.torch import mxfp4
from gptoss_mlx.backends.torch.operands import Bank, Groups, Heads, Matrix, Routed, most_tiles

SWIGLU_ALPHA = 1.702
BLOCK = 4096  # rows of a matrix that are widened at a time


def linear(
    x: torch.Tensor,
    matrix: Matrix,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x W^T + bias: x [tokens, inputs] -> [tokens, outputs] in `dtype`, by default x's.

    With another dtype than x's the product is computed in it, so that no sum is rounded to x's.
    """
    if dtype in (None, x.dtype):
        return F.linear(x, dense(matrix, x.dtype), bias)
    x = x.to(dtype)
    blocks = [F.linear(x, dense(part, x.dtype).to(dtype)) for part in _blocks(matrix)]
    y = torch.cat(blocks, dim=-1)
    return y if bias is None else y + bias


def _blocks(matrix: Matrix) -> Iterator[Matrix]:
    """The matrix, BLOCK rows at a time."""
    parts = [p for p in (matrix.weight, matrix.scales, matrix.biases) if p is not None]
    for i in range(0, len(matrix.weight), BLOCK):
        yield Matrix(*(part[i : i + BLOCK] for part in parts))


def dense(matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
    """The matrix as floats [outputs, inputs]: dequantized to `dtype`, or unquantized `weight`."""
    if matrix.scales is None or matrix.biases is None:
        return matrix.weight
    codes = matrix.weight.reshape(len(matrix.weight), -1, matrix.group).float()
    values = codes * matrix.scales[..., None].float() + matrix.biases[..., None].float()
    return values.flatten(1).to(dtype)


def add_norm(
    x: torch.Tensor, updates: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual sum and its RMSNorm: x [tokens, hidden], updates [tokens, n, hidden] -> both.

    The n residual updates of a token are added up in order, in float32, and then to x; the sum is
    rounded to x's dtype before it is normalized.
    """
    if updates is not None:
        total = x.float()
        added = torch.zeros_like(total)
        for update in updates.float().unbind(1):
            added = added + update
        x = (total + added).to(x.dtype)
    t = x.float()
    t = t * torch.rsqrt(t.square().mean(-1, keepdim=True) + eps)
    return x, (t * weight.float()).to(x.dtype)


def rope_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
    cache: torch.Tensor,
    periods: torch.Tensor,
    heads: Heads,
) -> torch.Tensor:
    """Apply the rotary embedding to queries and keys; write keys and values to the cache.

    qkv [tokens, (heads + 2 * kv_heads) * head_dim]; positions, rows, places [tokens]: token i goes
    to cache[rows[i], :, :, places[i]]; cache [rows, 2, kv_heads, capacity, head_dim], keys and then
    values; periods float32 [head_dim / 2], tokens per radian
    -> queries [tokens, heads, head_dim]. Dimensions d and d + head_dim / 2 form a rotated pair.
    """
    q, k, v = torch.split(
        qkv.reshape(len(qkv), -1, heads.head_dim),
        [heads.heads, heads.kv_heads, heads.kv_heads],
        dim=1,
    )
    angles = (positions[:, None].float() / periods)[:, None]
    cos, sin = angles.cos(), angles.sin()
    kv = torch.stack((_rotate(k, cos, sin), v), dim=1).to(cache.dtype)
    cache[rows.long(), :, :, places.long()] = kv
    return _rotate(q, cos, sin)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def decode_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    rows: torch.Tensor,
    lengths: torch.Tensor,
    sinks: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Decode attention: query i attends to the first lengths[i] places of cache row rows[i].

    The keys of a row may lie in any order, as in a ring buffer. q [tokens, heads, head_dim], cache
    [rows, 2, kv_heads, capacity, head_dim], rows and lengths [tokens], sinks [heads]
    -> [tokens, heads * head_dim]. Waits for the device.
    """
    seen = int(lengths.max())
    k, v = cache[:, :, :, :seen][rows.long()].unbind(1)
    visible = torch.arange(k.shape[2], device=q.device) < lengths[:, None]
    y = _attend(q[:, :, None], k, v, visible[:, None, None], sinks, scale)
    return y.flatten(1)


def prefill_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    sinks: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of a chunk's queries to all keys so far; the chunk's own are the last.

    q [tokens, heads, head_dim], kv [2, kv_heads, seen, head_dim], seen >= tokens, may be strided;
    query i sees the keys j <= seen - tokens + i, with a window only the last `window` of those.
    sinks [heads] -> [tokens, heads * head_dim]
    """
    tokens, seen = q.shape[0], kv.shape[2]
    last = torch.arange(seen - tokens, seen, device=q.device)[:, None]
    key = torch.arange(seen, device=q.device)
    visible = key <= last
    if window is not None:
        visible &= key > last - window
    y = _attend(q.transpose(0, 1)[None], kv[:1], kv[1:], visible, sinks, scale)
    return y[0].transpose(0, 1).flatten(1)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    sinks: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Softmax attention with a sink logit per head -> [n, heads, queries, d].

    q [n, heads, queries, d], k and v [n, kv_heads, keys, d], visible [.., queries, keys], sinks
    [heads].
    """
    n, heads, queries, _ = q.shape
    kv_heads = k.shape[1]
    q = q.float().reshape(n, kv_heads, heads // kv_heads, queries, -1)
    scores = scale * torch.einsum("nghqd,ngkd->nghqk", q, k.float()).flatten(1, 2)
    scores = scores.masked_fill(~visible, -torch.inf)
    sink = sinks.float()[None, :, None, None].expand(n, heads, queries, 1)
    weights = torch.cat((scores, sink), dim=-1).softmax(dim=-1)[..., :-1]
    weights = weights.reshape(n, kv_heads, heads // kv_heads, queries, -1)
    y = torch.einsum("nghqk,ngkd->nghqd", weights, v.float()).flatten(1, 2)
    return y.to(k.dtype)


def router_topk(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest logits of each token and the softmax over just those.

    logits float32 [tokens, experts] -> ids int32 [tokens, k], weights float32 [tokens, k]. The
    largest comes first, and of equal logits the lowest expert.
    """
    values, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    return ids[:, :k].to(torch.int32), values[:, :k].softmax(dim=-1)


def tile_for(pairs: int, slots: int) -> int:
    """Pairs per tile: the reference takes any number."""
    return 64


def group_pairs(visits: torch.Tensor, slots: int, tile: int) -> Groups:
    """Group pairs by slot: visits [tokens, k], each pair's slot, below `slots`; see `Groups`."""
    flat = visits.flatten().long()
    order = torch.argsort(flat, stable=True)
    counts = torch.zeros(slots, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    ends = counts.cumsum(0)
    last_tile = ((counts + tile - 1) // tile).cumsum(0)
    index = torch.arange(most_tiles(flat.numel(), slots, tile), device=flat.device)
    slot = torch.searchsorted(last_tile, index, right=True)
    used = slot < slots
    at = slot.clamp(max=slots - 1)
    first_tile = last_tile[at] - (counts[at] + tile - 1) // tile
    begin = ends[at] - counts[at] + (index - first_tile) * tile
    end = torch.minimum(begin + tile, ends[at])
    zero = torch.zeros_like(index)
    slot = torch.where(used, slot, zero - 1)
    order, slot, begin, end = (
        column.to(torch.int32) for column in (order, slot, begin * used, end * used)
    )
    return Groups(order, slot, begin, end, tile)


def route(logits: torch.Tensor, k: int, tile: int) -> Routed:
    """`router_topk`, and `group_pairs` of the chosen experts, with expert e in slot e."""
    experts, weights = router_topk(logits, k)
    return experts, weights, group_pairs(experts, logits.shape[1], tile)


def moe_gate_up(
    x: torch.Tensor, bank: Bank, groups: Groups, experts: torch.Tensor, limit: float
) -> torch.Tensor:
    """Gate and up projections of every pair's expert, and SwiGLU.

    x [tokens, hidden], experts int32 [tokens, k] -> [tokens * k, intermediate], by pair.
    """
    k = experts.shape[1]
    width = bank.gate_up_bias.shape[1] // 2
    out = x.new_empty(experts.numel(), width)
    for pairs, slot in _tiles(groups):
        matrix = bank.gate_up_blocks[slot], bank.gate_up_scales[slot]
        weight = mxfp4.dequantize(*matrix, packed=bank.packed)
        bias = bank.gate_up_bias[experts.flatten()[pairs[0]]]
        y = F.linear(x[pairs // k], weight.to(x.dtype), bias).float()
        out[pairs] = swiglu(y, limit).to(x.dtype)
    return out


def swiglu(y: torch.Tensor, limit: float) -> torch.Tensor:
    """gpt-oss's clamped SwiGLU: [.., 2n], gate and up interleaved -> [.., n]"""
    gate, up = y[..., ::2].clamp(max=limit), y[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)


def moe_down(
    h: torch.Tensor,
    bank: Bank,
    groups: Groups,
    experts: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Down projection of every pair's expert, plus bias, times its routing weight, not summed.

    h [tokens * k, intermediate] by pair, experts and weights [tokens, k]
    -> float32 [tokens, k, hidden]
    """
    tokens, k = experts.shape
    out = h.new_empty(tokens * k, bank.down_bias.shape[1], dtype=torch.float32)
    for pairs, slot in _tiles(groups):
        matrix = bank.down_blocks[slot], bank.down_scales[slot]
        weight = mxfp4.dequantize(*matrix, packed=bank.packed)
        bias = bank.down_bias[experts.flatten()[pairs[0]]]
        y = F.linear(h[pairs], weight.to(h.dtype), bias).float()
        out[pairs] = y * weights.flatten()[pairs, None]
    return out.reshape(tokens, k, -1)


def _tiles(groups: Groups) -> list[tuple[torch.Tensor, int]]:
    """(pairs, slot) of every tile in use. Waits for the device."""
    columns = zip(groups.slot.tolist(), groups.begin.tolist(), groups.end.tolist(), strict=True)
    return [(groups.order[b:e].long(), slot) for slot, b, e in columns if slot >= 0]
