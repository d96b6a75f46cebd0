"""The residual sum and its RMSNorm in one pass over a token's row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch.triton.attention import narrow
from gptoss_mlx.backends.torch.triton.capability import capability_of, nearest

VALUES = {80: 16}
"""Values of a row per thread, by capability. With four float32 updates a thread has 16 loads of 16
bytes in flight, and takes less than half of the registers it may have."""
MOST_WARPS = 16


@triton.jit
def add_norm_kernel(
    x,
    updates,
    weight,
    total,
    out,
    eps,
    token_stride,
    update_stride,
    HIDDEN: tl.constexpr,
    UPDATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program: one token. x, total, out [tokens, HIDDEN]; updates [tokens, UPDATES, HIDDEN] by
    # their strides, the last dimension contiguous.
    token = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < HIDDEN
    row = token * HIDDEN + i
    scale = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + row, mask=inside, other=0.0).to(tl.float32)
    if UPDATES > 0:
        added = tl.zeros([BLOCK], tl.float32)
        for update in tl.static_range(UPDATES):
            at = updates + token * token_stride + update * update_stride + i
            added += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        rounded = narrow(value + added, total.dtype.element_ty)
        tl.store(total + row, rounded, mask=inside)
        value = rounded.to(tl.float32)
    mean = tl.sum(value * value, axis=0) / HIDDEN
    normed = value * tl.rsqrt(mean + eps) * scale
    tl.store(out + row, narrow(normed, out.dtype.element_ty), mask=inside)


def add_norm(
    x: torch.Tensor, updates: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.add_norm`. x [tokens, hidden], updates [tokens, n, hidden], strided or not."""
    tokens, hidden = x.shape
    x = x.contiguous()
    total, out = x if updates is None else torch.empty_like(x), torch.empty_like(x)
    if updates is not None and updates.stride(2) != 1:
        updates = updates.contiguous()
    add_norm_kernel[(tokens,)](
        x,
        x if updates is None else updates,
        weight,
        total,
        out,
        eps,
        0 if updates is None else updates.stride(0),
        0 if updates is None else updates.stride(1),
        HIDDEN=hidden,
        UPDATES=0 if updates is None else updates.shape[1],
        BLOCK=triton.next_power_of_2(hidden),
        num_warps=warps(hidden, capability_of(x.device)),
    )
    return total, out


def warps(hidden: int, capability: int) -> int:
    threads: int = triton.next_power_of_2(hidden) // nearest(VALUES, capability)
    return min(max(threads // 32, 1), MOST_WARPS)


def examples(dtype: torch.dtype, device: torch.device | str) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernel."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for tokens, hidden, updates in ((1, 2880, 4), (5, 96, 1), (3, 65, 2), (2, 64, 0)):
        x, weight = normal(tokens, hidden), normal(hidden)
        sums = normal(updates, tokens, hidden).transpose(0, 1).to(device) if updates else None
        yield x.to(device, dtype), sums, weight.to(device, dtype), 1e-5
