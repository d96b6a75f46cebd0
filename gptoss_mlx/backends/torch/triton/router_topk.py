"""The router's top-k: which experts a token visits, and their weights.

Logits are compared as integer keys of the same order: a warp finds the largest integer in one
instruction, and an expert already chosen gets a key below that of any logit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch import reference
from gptoss_mlx.backends.torch.operands import Routed
from gptoss_mlx.backends.torch.triton.group_pairs import FEW, empty_groups, group, group_pairs

EXPERTS = 1024  # experts whose logits a program holds, at most
CHOSEN = 8  # experts per token, at most

_LOWEST = tl.constexpr(-(2**31))  # below minus infinity
_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def number(key):
    """The float32 that a key stands for."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def choose(x, experts, K: tl.constexpr, KB: tl.constexpr):
    """Top-k of x float32 [T, E], the first `experts` real -> ids and weights [T, KB], K real."""
    expert = tl.arange(0, x.shape[1])[None, :]
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0 equals 0
    bits = tl.where(x != x, _NAN, bits)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(expert < experts, key, _LOWEST)
    nth = tl.arange(0, KB)[None, :]
    ids = tl.zeros([x.shape[0], KB], tl.int32)
    keys = tl.zeros([x.shape[0], KB], tl.int32)
    top = tl.max(key, axis=1)[:, None]
    best = top
    for j in tl.static_range(K):
        at = tl.min(tl.where(key == best, expert, x.shape[1]), axis=1)[:, None]
        ids = tl.where(nth == j, at, ids)
        keys = tl.where(nth == j, best, keys)
        if j + 1 < K:
            key = tl.where(expert == at, _LOWEST, key)
            best = tl.max(key, axis=1)[:, None]
    values = tl.where(nth < K, number(keys), -float("inf"))
    powers = tl.exp(values - number(top))
    return ids, powers / tl.sum(powers, axis=1)[:, None]


@triton.jit
def load(logits, token, tokens, experts, E: tl.constexpr):
    """Load rows token [T] of logits [tokens, experts] -> [T, E]."""
    expert = tl.arange(0, E)[None, :]
    if token.shape[0] == 1:  # a lane takes every 32nd, or each would do the group's work four times
        expert = tl.max_contiguous(expert, [1, 1])
    inside = (token[:, None] < tokens) & (expert < experts)
    return tl.load(logits + token[:, None] * experts + expert, mask=inside, other=0.0)


@triton.jit
def keep(ids, shares, chosen, weights, token, tokens, K: tl.constexpr, KB: tl.constexpr):
    """Write the ids and shares of rows token [T] to chosen and weights [tokens, K]."""
    nth = tl.arange(0, KB)[None, :]
    inside = (token[:, None] < tokens) & (nth < K)
    tl.store(chosen + token[:, None] * K + nth, ids, mask=inside)
    tl.store(weights + token[:, None] * K + nth, shares, mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def router_topk_kernel(
    logits,
    chosen,
    weights,
    tokens,
    experts,
    K: tl.constexpr,
    KB: tl.constexpr,
    E: tl.constexpr,
):
    # A program, which is one warp, chooses for one token.
    token = tl.program_id(0) + tl.arange(0, 1)
    ids, shares = choose(load(logits, token, tokens, experts, E), experts, K, KB)
    keep(ids, shares, chosen, weights, token, tokens, K, KB)


@triton.jit(do_not_specialize=["tokens", "tiles"])
def route_kernel(
    logits,
    chosen,
    weights,
    order,
    slot,
    begin,
    end,
    tokens,
    experts,
    tiles,
    TILE: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    KB: tl.constexpr,
    E: tl.constexpr,
):
    # One program chooses for all tokens and groups their pairs; tokens <= T.
    token = tl.arange(0, T)
    ids, shares = choose(load(logits, token, tokens, experts, E), experts, K, KB)
    keep(ids, shares, chosen, weights, token, tokens, K, KB)
    place = tl.arange(0, T * KB)
    nth = place % KB
    used = (nth < K) & (place // KB < tokens)
    pair = place // KB * K + nth
    visit = tl.reshape(ids, [T * KB])
    group(visit, pair, used, order, slot, begin, end, tiles, TILE, T * KB)


def router_topk(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.router_topk`: logits float32 [tokens, experts] -> ids, weights [tokens, k]."""
    tokens, experts = logits.shape
    if experts > EXPERTS or k > CHOSEN:
        return reference.router_topk(logits, k)
    chosen, weights = _empty(logits, k)
    router_topk_kernel[(tokens,)](
        *(logits.contiguous(), chosen, weights, tokens, experts),
        **{"K": k, **_sizes(experts, k), "num_warps": 1},
    )
    return chosen, weights


def route(logits: torch.Tensor, k: int, tile: int) -> Routed:
    """`router_topk` and the `group_pairs` of what it chose, expert e in slot e.

    logits float32 [tokens, experts] -> ids int32 [tokens, k], weights float32 [tokens, k], groups.
    One launch where the pairs are few.
    """
    tokens, experts = logits.shape
    size = triton.next_power_of_2(tokens)
    if size * triton.next_power_of_2(k) > FEW or experts > EXPERTS:
        chosen, weights = router_topk(logits, k)
        return chosen, weights, group_pairs(chosen, experts, tile)
    chosen, weights = _empty(logits, k)
    groups = empty_groups(tokens * k, experts, tile, logits.device)
    route_kernel[(1,)](
        *(logits.contiguous(), chosen, weights),
        *(groups.order, groups.slot, groups.begin, groups.end),
        *(tokens, experts, len(groups.slot)),
        **{"TILE": tile, "T": size, "K": k, **_sizes(experts, k), "num_warps": _warps(size)},
    )
    return chosen, weights, groups


def _empty(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (len(logits), k)
    return logits.new_empty(shape, dtype=torch.int32), logits.new_empty(shape)


def _sizes(experts: int, k: int) -> dict[str, int]:
    return {"KB": triton.next_power_of_2(k), "E": triton.next_power_of_2(experts)}


def _warps(tokens: int) -> int:
    """Warps for `route`: one per token, up to 8."""
    return min(tokens, 8)


def examples(
    dtype: torch.dtype, device: torch.device | str
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(operation, arguments) of small calls that reach every part of the kernels."""
    for experts, k in ((32, 4), (128, 4), (100, 5), (5, 1)):
        generator = torch.Generator().manual_seed(experts)
        yield "router_topk", (3 * torch.randn((3, experts), generator=generator).to(device), k)
        for tokens in (1, 5, 40):
            logits = 3 * torch.randn((tokens, experts), generator=generator)
            yield "route", (logits.to(device), k, 8)
    yield "router_topk", (torch.zeros((2, 40), device=device), 3)
