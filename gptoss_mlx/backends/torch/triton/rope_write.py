"""Rotary embedding of queries and keys; keys and values are written to the cache.

An angle is a token's position divided by a pair's period, rounded to float32. Its cosine and sine
are computed here, alike on every card: the built-in ones are inexact for large angles, or slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch.operands import Heads
from gptoss_mlx.backends.torch.triton.attention import narrow

BLOCK = 16  # heads per program: 80 heads are five programs per token, 4 pairs per thread
WARPS = 4

TWO_OVER_PI = tl.constexpr(0.6366197723675814)
# pi / 2 as a sum of three float32, each the remainder of the ones before.
PART_1 = tl.constexpr(1.57079637050628662109375)
PART_2 = tl.constexpr(-4.37113900018624283e-08)
PART_3 = tl.constexpr(-1.71512467e-15)


@triton.jit
def cos_sin(x):
    """Cosine and sine of 0 <= x <= 131072, each within 8e-8.

    Cody-Waite range reduction: x minus the nearest multiple of pi / 2. The first difference is
    exact: it is a multiple of 2^-23, as PART_1 and every x from 1 on are, and less than 1.
    """
    quarters = tl.floor(x * TWO_OVER_PI + 0.5)
    rest = tl.fma(-quarters, tl.full(x.shape, PART_1, tl.float32), x)
    rest = tl.fma(-quarters, tl.full(x.shape, PART_2, tl.float32), rest)
    rest = tl.fma(-quarters, tl.full(x.shape, PART_3, tl.float32), rest)
    square = rest * rest
    # Taylor polynomials with coefficients adjusted up to pi / 4 (Cephes, sinf.c and cosf.c).
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square
    sine = sine * rest + rest
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square
    cosine = (cosine + 4.166664568298827e-2) * square * square - 0.5 * square + 1.0
    turn = quarters.to(tl.int32) & 3
    odd = (turn & 1) == 1
    a, b = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where((turn == 1) | (turn == 2), -a, a), tl.where(turn >= 2, -b, b)


@triton.jit
def _rope_write(
    qkv, positions, rows, places, cache, periods, out,
    row_stride, half_stride, head_stride, place_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # A program: BLOCK heads of one token, of queries, then keys, then values. A thread has both
    # halves of a pair, HALF dimensions apart.
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[:, None]
    pair = tl.arange(0, WIDTH)[None, :]
    real = (head < HEADS + 2 * KV_HEADS) & (pair < HALF)
    at = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * (2 * HALF) + pair
    a = tl.load(at, mask=real, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=real, other=0.0).to(tl.float32)
    position = tl.load(positions + token).to(tl.float32)
    period = tl.load(periods + pair, mask=pair < HALF, other=1.0)
    cos, sin = cos_sin(tl.div_rn(tl.broadcast_to(position, period.shape), period))
    kept = head - HEADS  # index among the heads of keys, then of values
    rotated = kept < KV_HEADS
    x = narrow(tl.where(rotated, a * cos - b * sin, a), out.dtype.element_ty)
    y = narrow(tl.where(rotated, b * cos + a * sin, b), out.dtype.element_ty)
    query = real & (kept < 0)
    to = out + (token * HEADS + head) * (2 * HALF) + pair
    tl.store(to, x, mask=query)
    tl.store(to + HALF, y, mask=query)
    kept = tl.maximum(kept, 0)
    row, place = tl.load(rows + token).to(tl.int64), tl.load(places + token).to(tl.int64)
    cache += row * row_stride + place * place_stride
    to = cache + kept // KV_HEADS * half_stride + kept % KV_HEADS * head_stride + pair
    tl.store(to, x, mask=real & (head >= HEADS))
    tl.store(to + HALF, y, mask=real & (head >= HEADS))


def rope_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
    cache: torch.Tensor,
    periods: torch.Tensor,
    heads: Heads,
) -> torch.Tensor:
    """As `reference.rope_write`, for positions up to 131072 and periods of at least 1.

    The last dimension of the cache must be contiguous; tokens written to one place must be equal.
    """
    tokens = len(qkv)
    if cache.stride(-1) != 1:
        raise ValueError("a head of the cache is not contiguous")
    out = torch.empty(tokens, heads.heads, heads.head_dim, dtype=qkv.dtype, device=qkv.device)
    _rope_write[(tokens, triton.cdiv(heads.heads + 2 * heads.kv_heads, BLOCK))](
        qkv.contiguous(), positions, rows, places, cache, periods, out,
        *cache.stride()[:4], **_shape(heads), num_warps=WARPS,
    )  # fmt: skip
    return out


def _shape(heads: Heads) -> dict[str, Any]:
    half = heads.head_dim // 2
    return {
        "HEADS": heads.heads,
        "KV_HEADS": heads.kv_heads,
        "HALF": half,
        "WIDTH": triton.next_power_of_2(half),
        "BLOCK": BLOCK,
    }


def examples(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernel."""
    for heads, positions, capacity in (
        (Heads(64, 8, 64), (0, 131071), 3),
        (Heads(6, 2, 24), (1, 5, 77), 8),
    ):
        make = torch.Generator().manual_seed(capacity)
        tokens, dim = len(positions), heads.head_dim
        qkv = torch.randn(tokens, (heads.heads + 2 * heads.kv_heads) * dim, generator=make)
        cache = torch.randn(tokens, 2, heads.kv_heads, capacity, dim, generator=make)
        periods = 1.5e5 ** (torch.arange(0, dim, 2) / dim)
        where = (positions, range(tokens)[::-1], [p % capacity for p in positions])
        yield (
            qkv.to(device, dtype),
            *(torch.tensor(list(x), dtype=torch.int32, device=device) for x in where),
            cache.to(device, dtype),
            periods.to(device),
            heads,
        )
