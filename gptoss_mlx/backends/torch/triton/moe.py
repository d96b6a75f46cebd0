"""The experts: gate, up and SwiGLU in one kernel, down, bias and routing weight in another.

A program takes some rows of one expert and one tile of the pairs that visit it. Programs with the
same rows and neighbouring tiles run side by side, so that an expert is read from memory once,
however many tiles it has. The outputs of a token's experts are not summed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch import mxfp4
from gptoss_mlx.backends.torch.operands import Bank, Groups
from gptoss_mlx.backends.torch.reference import SWIGLU_ALPHA, group_pairs
from gptoss_mlx.backends.torch.triton.capability import capability_of, nearest
from gptoss_mlx.backends.torch.triton.experts import product

ALPHA = tl.constexpr(SWIGLU_ALPHA)
EVERY = tl.constexpr(tl.PropagateNan.ALL)


class Shape(NamedTuple):
    """The tile of a program: its rows, inputs per step, warps and pipeline stages.

    whole: a step is one product of all its inputs, as wgmma and tcgen05 want, or else one per
    quarter, which takes fewer registers.
    """

    rows: int
    inputs: int
    warps: int
    stages: int
    whole: bool = False


_DECODE = {8: Shape(64, 256, 2, 3), 16: Shape(64, 256, 2, 3)}
_FEW = Shape(32, 256, 2, 4)
_MMA = {32: Shape(64, 128, 2, 3), 64: Shape(128, 128, 4, 2)}
_WGMMA = {32: Shape(128, 128, 4, 3, True), 64: Shape(128, 128, 4, 3, True)}
TABLE: Mapping[int, Mapping[int, Shape]] = {80: _DECODE | _MMA, 90: _DECODE | _WGMMA}
TABLE = {**TABLE, 120: TABLE[80]}
"""Shapes by capability and pairs per tile.

They are calculated: a lane has at least 128 weights per step, so that it loads four bytes of scales
(fewer are not loaded ahead) and all other work is small: 2.4 instructions per weight. In decoding,
64 rows of 256 inputs are 8 KiB; two such steps are in flight for each of the 6 programs for which a
multiprocessor has registers. A tile of 128 pairs spills, and saves only what wgmma hides anyway.
"""
FEW = 1024  # programs, eight to a multiprocessor, below which each takes 32 rows
FLOAT32 = Shape(64, 64, 8, 2)
"""The shape for float32, which no tensor core multiplies exactly."""


def tile_for(pairs: int, slots: int, capability: int) -> int:
    """Pairs per tile: the smallest tile that holds the average slot's pairs, else the largest."""
    tiles = nearest(TABLE, capability)
    return min((t for t in tiles if t * slots >= pairs), default=max(tiles))


# A program: BM rows of one expert, gate and up interleaved, for one tile of pairs.
@triton.jit
def gate_up_kernel(
    x,
    blocks,
    scales,
    bias,
    experts,
    order,
    slots,
    begins,
    ends,
    out,
    limit,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    ACTIVE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
):
    slot = tl.load(slots + tl.program_id(0))
    if slot < 0:
        return
    begin = tl.load(begins + tl.program_id(0))
    place = begin + tl.arange(0, BN)
    used = place < tl.load(ends + tl.program_id(0))
    pair = tl.load(order + place, mask=used, other=0)
    first = tl.program_id(1) * BM
    token = pair // ACTIVE
    y = product(
        x, token, used, blocks, scales, slot, first, OUTPUTS, INPUTS, BM, BN, BK, STAGES, WHOLE
    )
    row = first + tl.arange(0, BM)
    expert = tl.load(experts + tl.load(order + begin))
    b = tl.load(bias + expert * OUTPUTS + row, mask=row < OUTPUTS, other=0.0)
    y += b.to(tl.float32)[:, None]
    gate, up = tl.split(tl.permute(tl.reshape(y, [BM // 2, 2, BN]), [0, 2, 1]))
    gate = tl.minimum(gate, limit, propagate_nan=EVERY)
    up = tl.clamp(up, -limit, limit, propagate_nan=EVERY)
    y = gate / (1 + tl.exp(gate * -ALPHA)) * (up + 1)
    # Loaded again, to save registers until here; volatile, lest the two loads are merged.
    pair = tl.load(order + place, mask=used, other=0, volatile=True)
    row = first // 2 + tl.arange(0, BM // 2)
    at = pair[None, :] * (OUTPUTS // 2) + row[:, None]
    mask = used[None, :] & (row < OUTPUTS // 2)[:, None]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


# A program: BM rows of one expert for one tile of pairs.
@triton.jit
def down_kernel(
    x,
    blocks,
    scales,
    bias,
    experts,
    weights,
    order,
    slots,
    begins,
    ends,
    out,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
):
    slot = tl.load(slots + tl.program_id(0))
    if slot < 0:
        return
    begin = tl.load(begins + tl.program_id(0))
    place = begin + tl.arange(0, BN)
    used = place < tl.load(ends + tl.program_id(0))
    pair = tl.load(order + place, mask=used, other=0)
    first = tl.program_id(1) * BM
    y = product(
        x, pair, used, blocks, scales, slot, first, OUTPUTS, INPUTS, BM, BN, BK, STAGES, WHOLE
    )
    # Loaded again, to save registers until here; volatile, lest the two loads are merged.
    pair = tl.load(order + place, mask=used, other=0, volatile=True)
    row = first + tl.arange(0, BM)
    fits = row < OUTPUTS
    expert = tl.load(experts + tl.load(order + begin))
    b = tl.load(bias + expert * OUTPUTS + row, mask=fits, other=0.0)
    y += b.to(tl.float32)[:, None]
    y *= tl.load(weights + pair, mask=used, other=0.0)[None, :]
    tl.store(out + pair[None, :] * OUTPUTS + row[:, None], y, mask=used[None, :] & fits[:, None])


def moe_gate_up(
    x: torch.Tensor, bank: Bank, groups: Groups, experts: torch.Tensor, limit: float
) -> torch.Tensor:
    """Gate and up projections of every pair's expert, and SwiGLU.

    x [tokens, hidden], experts int32 [tokens, k] -> [tokens * k, intermediate], by pair.
    """
    outputs, inputs = bank.gate_up_bias.shape[1], x.shape[1]
    out = x.new_empty(experts.numel(), outputs // 2)
    shape = _shape(x, groups.tile, len(groups.slot), outputs)
    gate_up_kernel[(len(groups.slot), triton.cdiv(outputs, shape.rows))](
        x,
        bank.gate_up_blocks.view(torch.int16),
        bank.gate_up_scales.flatten(1).view(torch.int16),
        bank.gate_up_bias,
        experts,
        groups.order,
        groups.slot,
        groups.begin,
        groups.end,
        out,
        float(limit),
        ACTIVE=experts.shape[1],
        **_constants(outputs, inputs, groups.tile, shape),
    )
    return out


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
    outputs, inputs = bank.down_bias.shape[1], h.shape[1]
    out = h.new_empty(*experts.shape, outputs, dtype=torch.float32)
    shape = _shape(h, groups.tile, len(groups.slot), outputs)
    down_kernel[(len(groups.slot), triton.cdiv(outputs, shape.rows))](
        h,
        bank.down_blocks.view(torch.int16),
        bank.down_scales.flatten(1).view(torch.int16),
        bank.down_bias,
        experts,
        weights,
        groups.order,
        groups.slot,
        groups.begin,
        groups.end,
        out,
        **_constants(outputs, inputs, groups.tile, shape),
    )
    return out


def _shape(x: torch.Tensor, tile: int, tiles: int, outputs: int) -> Shape:
    if x.dtype == torch.float32:
        return FLOAT32
    shape = nearest(TABLE, capability_of(x.device))[tile]
    few = tile in _DECODE and tiles * triton.cdiv(outputs, shape.rows) < FEW
    return _FEW if few else shape


def _constants(outputs: int, inputs: int, tile: int, shape: Shape) -> dict[str, int]:
    return {
        "OUTPUTS": outputs,
        "INPUTS": inputs,
        "BM": shape.rows,
        "BN": tile,
        "BK": shape.inputs,
        "STAGES": shape.stages,
        "WHOLE": shape.whole,
        "num_warps": shape.warps,
    }


def examples(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(function's name, arguments) of small calls that reach every part of the kernels."""
    for tokens, hidden, width, tile in ((3, 96, 64, 8), (5, 320, 32, 16), (9, 64, 192, 32)):
        make = torch.Generator().manual_seed(tokens)
        experts, slots, k = 7, 5, 3
        held = torch.randperm(experts, generator=make)[:slots].to(torch.int32)
        visits = torch.stack([torch.randperm(slots, generator=make)[:k] for _ in range(tokens)])
        ids = held[visits].to(device)
        bank = _bank(make, (experts, slots, hidden, width), dtype, device)
        groups = group_pairs(visits.to(device, torch.int32), slots, tile)
        x = torch.randn(tokens, hidden, generator=make).to(device, dtype)
        h = torch.randn(tokens * k, width, generator=make).to(device, dtype)
        weights = torch.rand(tokens, k, generator=make).to(device)
        yield "moe_gate_up", (x, bank, groups, ids, 7.0)
        yield "moe_down", (h, bank, groups, ids, weights)


def _bank(
    make: torch.Generator, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Bank:
    experts, slots, hidden, width = sizes
    arrays = []
    for outputs, inputs in ((2 * width, hidden), (hidden, width)):
        blocks = torch.randint(256, (slots, outputs, inputs // 2), generator=make)
        scales = torch.randint(118, 124, (slots, outputs, inputs // mxfp4.GROUP), generator=make)
        packed = mxfp4.pack(blocks.to(torch.uint8), scales.to(torch.uint8))
        arrays += [array.to(device) for array in packed]
    for outputs in (2 * width, hidden):
        arrays.append(torch.randn(experts, outputs, generator=make).to(device, dtype))
    a, b, c, d, gate_up_bias, down_bias = arrays
    return Bank(a, b, c, d, gate_up_bias, down_bias, packed=True)
