"""Decode attention with split-KV: one query of each sequence attends to its row of the cache.

Where there are too few sequences to keep a card busy, the keys of each are split among several
programs, and a second kernel merges their results. The number of programs depends only on sizes, so
that a CUDA graph can capture the launch; the number of keys per split depends on the length that
the sequence has when the kernel runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch.triton.attention import (
    LOG2E,
    dot,
    narrow,
    padded,
    processors,
    sink_logits,
)
from gptoss_mlx.backends.torch.triton.capability import capability_of, nearest

ROWS = tl.constexpr(16)  # of a matrix product: at most so many queries share a key-value head
LONGEST = 4096  # keys per split at most: a longer sequence has more splits
BUSY = 2  # programs per multiprocessor: each has 64 KiB of loads in flight, 25 KiB are needed
UNDIVIDED = 256  # capacity of a cache, in keys, up to which a second kernel is not worth it
MERGED = 32  # splits that are merged at a time


@dataclass(frozen=True)
class Config:
    """block: keys a program takes at a time, in as many equal lanes as it has warps."""

    block: int
    warps: int
    stages: int


# Two of the three stages are in shared memory, 32 KiB each for 128 keys and values in bfloat16. On
# 8.6, 8.9 and 12.0 a multiprocessor has 100 KiB, which hold two programs only with blocks of 64.
CONFIGS: Mapping[int, Config] = {
    80: Config(128, 4, 3),
    86: Config(64, 4, 3),
    90: Config(128, 4, 3),
    120: Config(64, 4, 3),
}
WIDE = Config(64, 4, 1)  # float32, multiplied without tensor cores
COMBINE_WARPS = 2


@triton.jit
def _share(length, fewest, LONGEST: tl.constexpr, BLOCK: tl.constexpr):
    """Keys per split of a sequence, in whole blocks; the last split may have fewer."""
    return tl.minimum(tl.cdiv(tl.cdiv(length, fewest), BLOCK) * BLOCK, LONGEST)


@triton.jit
def _gather(
    query, sink, cache, begin, end, half_stride, place_stride, scale,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys from begin to end -> maximum, sum of weights, weighted values.

    The sink counts for the maximum, but not in the sums. Every lane, one warp, has its own keys of
    each block and its own maximum and sums, so that warps wait for each other only for loads.
    """
    queries = tl.broadcast_to(query[None], (LANES, ROWS, WIDTH))
    maximum = tl.broadcast_to(sink[None], (LANES, ROWS))
    total = tl.zeros((LANES, ROWS), tl.float32)
    y = tl.zeros((LANES, ROWS, WIDTH), tl.float32)
    KEYS: tl.constexpr = BLOCK // LANES
    key = tl.arange(0, LANES)[:, None] * KEYS + tl.arange(0, KEYS)[None, :]
    dim = tl.arange(0, WIDTH)[None, None, :]
    at = key[:, :, None] * place_stride + dim
    for start in range(begin, end, BLOCK):
        seen = start + key < end
        held = seen[:, :, None]
        if DIM < WIDTH:
            held = held & (dim < DIM)
        block = cache + start * place_stride
        keys = tl.load(block + at, mask=held, other=0.0)
        logits = dot(queries, tl.trans(keys, 0, 2, 1), tl.zeros((LANES, ROWS, KEYS), tl.float32))
        logits = tl.where(seen[:, None, :], logits, -float("inf"))
        higher = tl.maximum(maximum, tl.max(logits, 2) * scale)
        weights = tl.exp2(logits * scale - higher[:, :, None])
        shrink = tl.exp2(maximum - higher)
        total = total * shrink + tl.sum(weights, 2)
        values = tl.load(block + half_stride + at, mask=held, other=0.0)
        y = dot(narrow(weights, values.dtype), values, y * shrink[:, :, None])
        maximum = higher
    top = tl.max(maximum, 0)
    of_lane = tl.exp2(maximum - top[None])
    return top, tl.sum(total * of_lane, 0), tl.sum(y * of_lane[:, :, None], 0)


@triton.jit(do_not_specialize=["splits", "fewest"])
def _attend(
    q, cache, rows, lengths, sinks, out, stats, scale,
    row_stride, half_stride, head_stride, place_stride, splits, fewest,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, LANES: tl.constexpr, LONGEST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    # A program: one split of a sequence's keys, or all of them, and all queries of one key-value
    # head.
    split_id, kv_head, token = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + token)
    share = _share(length, fewest, LONGEST, BLOCK)
    begin = split_id * share
    if not WHOLE and begin >= length:
        return
    head = tl.arange(0, ROWS)
    dim = tl.arange(0, WIDTH)
    ours = head < GROUP
    mask = ours[:, None] & (dim < DIM)[None, :]
    first = (token * KV_HEADS + kv_head) * GROUP + head
    query = tl.load(q + first[:, None] * DIM + dim[None, :], mask=mask, other=0.0)
    sink = sink_logits(sinks, kv_head * GROUP + head, ours)
    cache += tl.load(rows + token).to(tl.int64) * row_stride + kv_head * head_stride
    top, total, y = _gather(
        query, sink, cache, begin, tl.minimum(begin + share, length), half_stride, place_stride,
        scale, DIM, WIDTH, BLOCK, LANES,
    )  # fmt: skip
    if WHOLE:
        y = y / (total + tl.exp2(sink - top))[:, None]
        place = first
    else:
        place = first * splits + split_id
        tl.store(stats + place * 2, top, mask=ours)
        tl.store(stats + place * 2 + 1, total, mask=ours)
    y = narrow(y, out.dtype.element_ty)
    tl.store(out + place[:, None] * DIM + dim[None, :], y, mask=mask)


@triton.jit(do_not_specialize=["splits", "fewest"])
def _combine(
    sums, stats, lengths, sinks, out, splits, fewest,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, MERGED: tl.constexpr,
    BLOCK: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    # A program: one head of one sequence. It merges the splits in order, MERGED at a time.
    head, token = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + token)
    used = tl.cdiv(length, tl.maximum(_share(length, fewest, LONGEST, BLOCK), 1))
    dim = tl.arange(0, WIDTH)
    sink = sink_logits(sinks, head, True)
    maximum = sink
    total = tl.full((), 1.0, tl.float32)
    y = tl.zeros((WIDTH,), tl.float32)
    first = (token * HEADS + head) * splits
    for start in range(0, used, MERGED):
        split_ids = start + tl.arange(0, MERGED)
        here = split_ids < used
        tops = tl.load(stats + (first + split_ids) * 2, mask=here, other=-float("inf"))
        totals = tl.load(stats + (first + split_ids) * 2 + 1, mask=here, other=0.0)
        at = (first + split_ids)[:, None] * DIM + dim[None, :]
        splits_y = tl.load(sums + at, mask=here[:, None] & (dim < DIM)[None, :], other=0.0)
        higher = tl.maximum(maximum, tl.max(tops, 0))
        shrink, of_split = tl.exp2(maximum - higher), tl.exp2(tops - higher)
        total = total * shrink + tl.sum(totals * of_split, 0)
        y = y * shrink + tl.sum(splits_y * of_split[:, None], 0)
        maximum = higher
    y = narrow(y / total, out.dtype.element_ty)
    tl.store(out + (token * HEADS + head) * DIM + dim, y, mask=dim < DIM)


def decode_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    rows: torch.Tensor,
    lengths: torch.Tensor,
    sinks: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """As `reference.decode_attention`, for up to 16 queries to a key-value head and scale > 0.

    The last dimension of the cache must be contiguous; q and cache are of one dtype.
    """
    tokens, heads, dim = q.shape
    kv_heads, capacity = cache.shape[2], cache.shape[3]
    group = heads // kv_heads
    if group > ROWS.value or cache.stride(-1) != 1:
        raise ValueError(f"{group} queries to a key-value head, or a cache with other strides")
    config = _config(q.dtype, capability_of(q.device))
    fewest, splits = split(capacity, tokens * kv_heads, processors(q.device), config.block)
    out = torch.empty(tokens, heads * dim, dtype=cache.dtype, device=q.device)
    sums, stats = out, out
    if splits > 1:
        sums = torch.empty(tokens, heads, splits, dim, dtype=torch.float32, device=q.device)
        stats = torch.empty(tokens, heads, splits, 2, dtype=torch.float32, device=q.device)
    _attend[(splits, kv_heads, tokens)](
        q.contiguous(), cache, rows, lengths, sinks, sums, stats, scale * LOG2E.value,
        *cache.stride()[:4], splits, fewest,
        **_shape(kv_heads, group, dim, config, splits == 1),
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if splits > 1:
        _combine[(heads, tokens)](
            sums, stats, lengths, sinks, out, splits, fewest,
            **_merge(heads, dim, config), num_warps=COMBINE_WARPS,
        )  # fmt: skip
    return out


def split(capacity: int, pairs: int, processors: int, block: int) -> tuple[int, int]:
    """Splits per sequence: (as many as keep the card busy, the most that a long sequence has).

    capacity: keys per row of the cache; pairs: sequences times key-value heads; processors: the
    card's multiprocessors.
    """
    if capacity <= UNDIVIDED:
        return 1, 1
    fewest = min(max(BUSY * processors // pairs, 1), triton.cdiv(capacity, block))
    return fewest, max(fewest, triton.cdiv(capacity, LONGEST))


def _config(dtype: torch.dtype, capability: int) -> Config:
    return WIDE if dtype == torch.float32 else nearest(CONFIGS, capability)


def _shape(kv_heads: int, group: int, dim: int, config: Config, whole: bool) -> dict[str, Any]:
    return {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "DIM": dim,
        "WIDTH": padded(dim),
        "BLOCK": config.block,
        "LANES": config.warps,
        "LONGEST": LONGEST,
        "WHOLE": whole,
    }


def _merge(heads: int, dim: int, config: Config) -> dict[str, Any]:
    return {
        "HEADS": heads,
        "DIM": dim,
        "WIDTH": padded(dim),
        "MERGED": MERGED,
        "BLOCK": config.block,
        "LONGEST": LONGEST,
    }


def examples(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernels."""
    for heads, kv_heads, dim, lengths, capacity in (
        (16, 2, 64, (1, 128, 77), 128),  # rings
        (8, 1, 64, (1, 1000, 577), 1024),
        (3, 1, 24, (300, 129), 300),
    ):
        make = torch.Generator().manual_seed(capacity)
        rows = torch.randperm(len(lengths) + 1, generator=make)[: len(lengths)]
        cache = torch.randn(len(lengths) + 1, 2, kv_heads, capacity, dim, generator=make)
        q = torch.randn(len(lengths), heads, dim, generator=make)
        sinks = torch.randn(heads, generator=make)
        yield (
            q.to(device, dtype),
            cache.to(device, dtype),
            rows.to(device, torch.int32),
            torch.tensor(lengths, dtype=torch.int32, device=device),
            sinks.to(device, dtype),
            dim**-0.5,
        )
