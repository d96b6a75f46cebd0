"""The residual sum and its RMSNorm in one pass over a token's row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch.triton.attention import narrow
from gptoss_mlx.backends.torch.triton.build import Build, capability_of, nearest

VALUES = {80: 16}
"""Of a row to a thread, by capability. With four float32 parts that is 16 loads of 16 bytes in
flight a thread, and less than half of the registers it may have."""
MOST_WARPS = 16


@triton.jit
def add_norm_kernel(
    x,
    parts,
    weight,
    total,
    out,
    eps,
    token_stride,
    part_stride,
    HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program computes one token. x, total, out [tokens, HIDDEN]; parts by their strides, and
    # their last dimension is dense.
    token = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < HIDDEN
    row = token * HIDDEN + i
    scale = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + row, mask=inside, other=0.0).to(tl.float32)
    if PARTS > 0:
        added = tl.zeros([BLOCK], tl.float32)
        for part in tl.static_range(PARTS):
            at = parts + token * token_stride + part * part_stride + i
            added += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        rounded = narrow(value + added, total.dtype.element_ty)
        tl.store(total + row, rounded, mask=inside)
        value = rounded.to(tl.float32)
    mean = tl.sum(value * value, axis=0) / HIDDEN
    normed = value * tl.rsqrt(mean + eps) * scale
    tl.store(out + row, narrow(normed, out.dtype.element_ty), mask=inside)


def add_norm(
    x: torch.Tensor, parts: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.add_norm`. x [tokens, hidden], parts [tokens, n, hidden], strided or not."""
    tokens, hidden = x.shape
    x = x.contiguous()
    total, out = x if parts is None else torch.empty_like(x), torch.empty_like(x)
    if parts is not None and parts.stride(2) != 1:
        parts = parts.contiguous()
    add_norm_kernel[(tokens,)](
        x,
        x if parts is None else parts,
        weight,
        total,
        out,
        eps,
        0 if parts is None else parts.stride(0),
        0 if parts is None else parts.stride(1),
        HIDDEN=hidden,
        PARTS=0 if parts is None else parts.shape[1],
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

    for tokens, hidden, parts in ((1, 2880, 4), (5, 96, 1), (3, 65, 2), (2, 64, 0)):
        x, weight = normal(tokens, hidden), normal(hidden)
        sums = normal(parts, tokens, hidden).transpose(0, 1).to(device) if parts else None
        yield x.to(device, dtype), sums, weight.to(device, dtype), 1e-5


def builds(capability: int) -> Iterator[Build]:
    """gpt-oss: what attention adds is one part in the compute dtype, what experts add is four."""
    hidden = 2880
    for name, part, count in (
        ("none", "bf16", 0),
        ("attention", "bf16", 1),
        ("experts", "fp32", 4),
    ):
        types = dict.fromkeys(("x", "parts", "weight", "total", "out"), "*bf16")
        types |= {"parts": f"*{part}", "eps": "fp32"}
        types |= dict.fromkeys(("token_stride", "part_stride"), "i32")
        types |= dict.fromkeys(("HIDDEN", "PARTS", "BLOCK"), "constexpr")
        yield Build(
            name=f"add_norm {name}",
            kernel=add_norm_kernel,
            types=types,
            constants={"HIDDEN": hidden, "PARTS": count, "BLOCK": triton.next_power_of_2(hidden)},
            aligned=("x", "parts", "weight", "total", "out", "token_stride", "part_stride"),
            options={"num_warps": warps(hidden, capability)},
        )
