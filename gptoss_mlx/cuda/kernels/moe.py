"""The experts: gate, up and SwiGLU in one kernel, down, bias and routing weight in another.

A program takes some rows of one expert and one tile of the pairs that visit it; programs of the
same rows and neighbouring tiles are neighbours, so that an expert comes from memory once however
many tiles it has. The experts of a token are not added up here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from gptoss_mlx.cuda import mxfp4
from gptoss_mlx.cuda.kernels.build import Build, nearest
from gptoss_mlx.cuda.kernels.experts import product
from gptoss_mlx.cuda.operands import Bank, Groups
from gptoss_mlx.cuda.reference import SWIGLU_ALPHA, group_pairs

ALPHA = tl.constexpr(SWIGLU_ALPHA)
EVERY = tl.constexpr(tl.PropagateNan.ALL)


class Shape(NamedTuple):
    """Of a program's tile: its rows, inputs at a time, warps and stages of loading."""

    rows: int
    inputs: int
    warps: int
    stages: int


TABLE = {
    80: {
        8: Shape(32, 256, 2, 4),
        16: Shape(32, 256, 2, 4),
        32: Shape(64, 128, 4, 3),
        64: Shape(64, 128, 4, 3),
        128: Shape(128, 64, 8, 3),
    },
}
"""By capability and tile of pairs."""


def tile_for(pairs: int, slots: int, capability: int) -> int:
    """Pairs to a tile: the smallest tile that holds what visits a slot on average, if one does."""
    tiles = nearest(TABLE, capability)
    return min((t for t in tiles if t * slots >= pairs), default=max(tiles))


# A program: BM rows of one expert, gate and up in turn, for one tile of pairs.
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
        x, pair // ACTIVE, used, blocks, scales, slot, first, OUTPUTS, INPUTS, BM, BN, BK, STAGES
    )
    row = first + tl.arange(0, BM)
    expert = tl.load(experts + tl.load(order + begin))
    y += tl.load(bias + expert * OUTPUTS + row, mask=row < OUTPUTS, other=0.0).to(tl.float32)[
        :, None
    ]
    gate, up = tl.split(tl.permute(tl.reshape(y, [BM // 2, 2, BN]), [0, 2, 1]))
    gate = tl.minimum(gate, limit, propagate_nan=EVERY)
    up = tl.clamp(up, -limit, limit, propagate_nan=EVERY)
    y = gate / (1 + tl.exp(gate * -ALPHA)) * (up + 1)
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
):
    slot = tl.load(slots + tl.program_id(0))
    if slot < 0:
        return
    begin = tl.load(begins + tl.program_id(0))
    place = begin + tl.arange(0, BN)
    used = place < tl.load(ends + tl.program_id(0))
    pair = tl.load(order + place, mask=used, other=0)
    first = tl.program_id(1) * BM
    y = product(x, pair, used, blocks, scales, slot, first, OUTPUTS, INPUTS, BM, BN, BK, STAGES)
    row = first + tl.arange(0, BM)
    fits = row < OUTPUTS
    expert = tl.load(experts + tl.load(order + begin))
    y += tl.load(bias + expert * OUTPUTS + row, mask=fits, other=0.0).to(tl.float32)[:, None]
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
    shape = _shape(x, groups.tile)
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
    """Down projections, each with its bias and times its routing weight, not yet added up.

    h [tokens * k, intermediate] by pair, experts and weights [tokens, k]
    -> float32 [tokens, k, hidden]
    """
    outputs, inputs = bank.down_bias.shape[1], h.shape[1]
    out = h.new_empty(*experts.shape, outputs, dtype=torch.float32)
    shape = _shape(h, groups.tile)
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


def _shape(x: torch.Tensor, tile: int) -> Shape:
    capability = 80
    if x.is_cuda:
        major, minor = torch.cuda.get_device_capability(x.device)
        capability = 10 * major + minor
    return nearest(TABLE, capability)[tile]


def _constants(outputs: int, inputs: int, tile: int, shape: Shape) -> dict[str, int]:
    return {
        "OUTPUTS": outputs,
        "INPUTS": inputs,
        "BM": shape.rows,
        "BN": tile,
        "BK": shape.inputs,
        "STAGES": shape.stages,
        "num_warps": shape.warps,
    }


def examples(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(function's name, arguments) of small calls that reach every part of the kernels."""


def builds(capability: int) -> Iterator[Build]:
    """Both kernels at gpt-oss's widths, which are the 20b's and the 120b's alike."""
    bank = {"x": "*bf16", "blocks": "*i16", "scales": "*i16", "bias": "*bf16", "experts": "*i32"}
    groups = dict.fromkeys(("order", "slots", "begins", "ends"), "*i32")
    for tile, shape in nearest(TABLE, capability).items():
        for name, kernel, outputs, types, more in (
            ("moe_gate_up", gate_up_kernel, 5760, {"out": "*bf16", "limit": "fp32"}, {"ACTIVE": 4}),
            ("moe_down", down_kernel, 2880, {"weights": "*fp32", "out": "*fp32"}, {}),
        ):
            options = _constants(outputs, 2880, tile, shape)
            warps = {"num_warps": options.pop("num_warps")}
            types = bank | groups | types | dict.fromkeys(options | more, "constexpr")
            pointers = tuple(a for a, t in types.items() if t.startswith("*"))
            yield Build(f"{name}_{tile}", kernel, types, options | more, pointers, warps)
