"""Attention of a chunk's queries over all keys of their sequence, in blocks (flash attention).

Dao et al., "FlashAttention" (2022), algorithm 1, with a sink logit that every softmax starts from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch.triton.attention import LOG2E, dot, narrow, padded, sink_logits
from gptoss_mlx.backends.torch.triton.capability import capability_of, nearest


@dataclass(frozen=True)
class Config:
    """A program's tile. queries: tokens times heads per key-value head; block: keys per step."""

    queries: int
    block: int
    warps: int
    stages: int


# 128 queries share each load of a key, which the L2 cache's bandwidth requires. Four warps would
# need 255 registers per thread; eight with 64 keys need 125 on 9.0, so that two programs fit there
# and one multiplies while the other computes exponentials. On 10.0 sums are in tensor memory.
CONFIGS: Mapping[int, Config] = {
    80: Config(128, 64, 8, 3),
    100: Config(128, 128, 8, 3),
    120: Config(128, 64, 8, 3),
}
WINDOWED = Config(128, 64, 8, 3)  # a window of 128 and 16 tokens are 143 keys: 3 blocks of 64
WIDE = Config(32, 32, 8, 1)  # float32, multiplied without tensor cores


@triton.jit
def _held(at, mask):
    return tl.load(at) if mask is None else tl.load(at, mask=mask, other=0.0)


@triton.jit
def _visit(
    queries, kv, half_stride, at, seen, visible, scale, maximum, total, y,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Online-softmax step over a block of keys: `seen` masks loads, `visible` logits if MASKED."""
    keys = _held(kv + at, seen)
    zero = tl.zeros((queries.shape[0], keys.shape[0]), tl.float32)
    logits = dot(queries, tl.trans(keys), zero)
    if MASKED:
        logits = tl.where(visible, logits, -float("inf"))
    higher = tl.maximum(maximum, tl.max(logits, 1) * scale)
    weights = tl.exp2(logits * scale - higher[:, None])
    shrink = tl.exp2(maximum - higher)
    total = total * shrink + tl.sum(weights, 1)
    values = _held(kv + half_stride + at, seen)
    y = dot(narrow(weights, values.dtype), values, y * shrink[:, None])
    return higher, total, y


@triton.jit(do_not_specialize=["tokens", "seen"])
def _attend(
    q, kv, sinks, out, scale, tokens, seen, half_stride, head_stride, place_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    # A program: QUERIES rows, all heads that share a key-value head for consecutive tokens, so that
    # it visits few keys outside a window. The last tokens, which see the most keys, start first.
    kv_head = tl.program_id(1)
    base = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERIES
    row = base + tl.arange(0, QUERIES)
    dim = tl.arange(0, WIDTH)
    real = row < tokens * GROUP
    head = kv_head * GROUP + row % GROUP
    mask = real[:, None] & (dim < DIM)[None, :]
    at = (row // GROUP * (KV_HEADS * GROUP) + head)[:, None] * DIM + dim[None, :]
    queries = tl.load(q + at, mask=mask, other=0.0)
    maximum = sink_logits(sinks, head, real)
    total = tl.full((QUERIES,), 1.0, tl.float32)
    y = tl.zeros((QUERIES, WIDTH), tl.float32)
    last = seen - tokens + row // GROUP  # the last key that each query sees
    first = seen - tokens + base // GROUP
    end = tl.minimum(seen - tokens + (base + QUERIES - 1) // GROUP, seen - 1) + 1
    kv += kv_head.to(tl.int64) * head_stride
    key = tl.arange(0, BLOCK)
    to = key[:, None] * place_stride + dim[None, :]
    whole = dim[None, :] < DIM if DIM < WIDTH else None
    start = 0
    if WINDOW > 0:
        start = tl.maximum(first + 1 - WINDOW, 0)
    else:  # blocks of keys that all queries see
        start = (first + 1) // BLOCK * BLOCK
        for k in range(0, start, BLOCK):
            maximum, total, y = _visit(
                queries, kv + k * place_stride, half_stride, to, whole, None, scale,
                maximum, total, y, False,
            )  # fmt: skip
    for k in range(start, end, BLOCK):
        held = (k + key < end)[:, None]
        if DIM < WIDTH:
            held = held & (dim < DIM)[None, :]
        visible = (k + key)[None, :] <= last[:, None]
        if WINDOW > 0:
            visible = visible & ((k + key)[None, :] > last[:, None] - WINDOW)
        maximum, total, y = _visit(
            queries, kv + k * place_stride, half_stride, to, held, visible, scale,
            maximum, total, y, True,
        )  # fmt: skip
    tl.store(out + at, narrow(y / total[:, None], out.dtype.element_ty), mask=mask)


def prefill_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    sinks: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """As `reference.prefill_attention`, for scale > 0.

    The last dimension of kv must be contiguous; q and kv are of one dtype.
    """
    tokens, heads, dim = q.shape
    kv_heads, seen = kv.shape[1:3]
    if kv.stride(-1) != 1:
        raise ValueError("a head of the cache is not contiguous")
    group = heads // kv_heads
    config = _config(q.dtype, window, capability_of(q.device))
    out = torch.empty(tokens, heads * dim, dtype=kv.dtype, device=q.device)
    _attend[(triton.cdiv(tokens * group, config.queries), kv_heads)](
        q.contiguous(), kv, sinks, out, scale * LOG2E.value, tokens, seen, *kv.stride()[:3],
        **_shape(kv_heads, group, dim, config, window or 0),
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out


def _config(dtype: torch.dtype, window: int | None, capability: int) -> Config:
    if dtype == torch.float32:
        return WIDE
    return WINDOWED if window else nearest(CONFIGS, capability)


def _shape(kv_heads: int, group: int, dim: int, config: Config, window: int) -> dict[str, Any]:
    return {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "DIM": dim,
        "WIDTH": padded(dim),
        "QUERIES": config.queries,
        "BLOCK": config.block,
        "WINDOW": window,
    }


def examples(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernel."""
    for heads, kv_heads, dim, tokens, seen, window in (
        (16, 2, 64, 21, 21, None),
        (16, 2, 64, 19, 300, None),
        (8, 1, 64, 40, 300, 128),
        (3, 1, 24, 50, 70, 5),
    ):
        make = torch.Generator().manual_seed(tokens)
        q = torch.randn(tokens, heads, dim, generator=make)
        arena = torch.randn(2, kv_heads, seen + 9, dim, generator=make)
        sinks = torch.randn(heads, generator=make)
        kv = arena.to(device, dtype)[:, :, :seen]
        yield q.to(device, dtype), kv, sinks.to(device, dtype), dim**-0.5, window
