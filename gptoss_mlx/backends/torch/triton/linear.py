"""x W^T + bias: for few tokens by a kernel at the speed W is read, for many by cuBLAS.

W is floats, or bytes with a scale and a bias by group. Bytes are exact in bfloat16, so few tokens
are multiplied with the bytes themselves, and scale and bias are applied to each group's sum. For
many, and in float32, W is dequantized into SCRATCH bytes, a slice of rows at a time: writing and
reading it takes a fifth of the time of a product with 2048 tokens, and cuBLAS is fast on any card.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch.operands import Matrix
from gptoss_mlx.backends.torch.triton.attention import narrow
from gptoss_mlx.backends.torch.triton.capability import INTERPRETED, capability_of, nearest

FEW = 32  # tokens that one program multiplies at most
SCRATCH = 64 << 20  # bytes of a dequantized slice
WIDENED = 4096  # weights a program dequantizes
FOUR_BYTES = tl.constexpr("""{
    .reg .b32 a, b, c, d;
    prmt.b32 a, $2, 0x4B000000, 0x7440;
    prmt.b32 b, $2, 0x4B000000, 0x7441;
    prmt.b32 c, $2, 0x4B000000, 0x7442;
    prmt.b32 d, $2, 0x4B000000, 0x7443;
    sub.f32 a, a, 0f4B000000;
    sub.f32 b, b, 0f4B000000;
    sub.f32 c, c, 0f4B000000;
    sub.f32 d, d, 0f4B000000;
    cvt.rn.bf16x2.f32 $0, b, a;
    cvt.rn.bf16x2.f32 $1, d, c;
}""")
"""PTX: four bytes to four bfloat16, in ten instructions where the compiler takes fourteen."""

SPARSE_ROWS, MANY_ROWS = 1024, 8192


@triton.jit(do_not_specialize=["tokens", "rows"])
def _few(
    w,
    scales,
    biases,
    x,
    bias,
    out,
    tokens,
    rows,
    inputs,
    GROUP: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    SLICES: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
):
    # A program: ROWS of W times TOKENS of x. Each of SLICES warps sums up its WIDTH of every
    # SLICES * WIDTH inputs, so that few rows keep all warps of a program reading.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    there = tl.minimum(row, rows - 1).to(tl.int64)
    slices = tl.arange(0, SLICES)
    column = slices[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    w_at = w + there[None, :, None] * inputs + column[:, None, :]
    x_at = x + token.to(tl.int64)[None, None, :] * inputs + column[:, :, None]
    given = (token < tokens)[None, None, :]
    total = tl.zeros((SLICES, ROWS, TOKENS), tl.float32)
    if GROUP > 0:
        groups = inputs // GROUP
        scale, shift = _of_groups(scales, biases, there, slices, groups)
    for begin in range(0, inputs, SLICES * WIDTH):
        inside = column < inputs - begin
        wt = tl.load(w_at + begin, mask=inside[:, None, :], other=0)
        xt = tl.load(x_at + begin, mask=inside[:, :, None] & given, other=0)
        if INTERPRETED:
            xt = xt.to(tl.float32)
        if GROUP == 0:
            total = tl.dot(wt.to(xt.dtype), xt, total, input_precision="ieee")
        else:
            # A slice is a group: scale * (q . x) + bias * (1 . x). Ones derived from the bytes have
            # their layout, so that x is read once for both; the compiler sees that they are ones.
            ones = ((wt >> 4) >> 4) + 1
            product = tl.dot(_floats(wt, xt.dtype), xt, input_precision="ieee")
            sums = tl.dot(ones.to(xt.dtype), xt, input_precision="ieee")
            total += product * scale[:, :, None] + sums * shift[:, :, None]
            scale, shift = _of_groups(
                scales, biases, there, begin // GROUP + SLICES + slices, groups
            )
    y = tl.sum(total, axis=0)
    if BIAS:
        y += tl.load(bias + there).to(tl.float32)[:, None]
    out_at = out + token.to(tl.int64)[None, :] * rows + row[:, None]
    live = (row < rows)[:, None] & (token < tokens)[None, :]
    tl.store(out_at, narrow(y, out.dtype.element_ty), mask=live)


@triton.jit
def _of_groups(scales, biases, rows, group, groups):
    # Scales and biases [slices, rows], loaded one step before they are used.
    at = rows[None, :] * groups + group[:, None]
    known = (group < groups)[:, None]
    scale = tl.load(scales + at, mask=known, other=0).to(tl.float32)
    return scale, tl.load(biases + at, mask=known, other=0).to(tl.float32)


@triton.jit
def _floats(codes, dtype: tl.constexpr):
    # A byte in the low bits of the float 2^23 adds exactly itself; conversions are half as fast.
    if INTERPRETED or dtype != tl.bfloat16:
        high = codes.to(tl.uint32) | 0x4B000000
        q = (high.to(tl.float32, bitcast=True) - 8388608.0).to(dtype)
    else:
        q = tl.inline_asm_elementwise(FOUR_BYTES, "=r,=r,r", [codes], tl.bfloat16, True, 4)
    return q


@triton.jit
def _widen(codes, scales, biases, out, count, GROUP: tl.constexpr, WIDENED: tl.constexpr):
    # A program: WIDENED consecutive weights; groups end with rows, so scales are consecutive too.
    at = tl.program_id(0).to(tl.int64) * WIDENED + tl.arange(0, WIDENED)
    live = at < count
    q = _floats(tl.load(codes + at, mask=live, other=0), tl.float32)
    scale = tl.load(scales + at // GROUP, mask=live, other=0).to(tl.float32)
    shift = tl.load(biases + at // GROUP, mask=live, other=0).to(tl.float32)
    tl.store(out + at, narrow(q * scale + shift, out.dtype.element_ty), mask=live)


@dataclass(frozen=True)
class Tile:
    """The tile of a program of `_few`. stages: steps whose loads are in flight."""

    rows: int
    slices: int
    width: int
    tokens: int
    warps: int
    stages: int


STAGES = {80: 5, 86: 4, 90: 7, 120: 4}
"""Stages by capability, as shared memory allows: on 9.0 over 32 KB a multiprocessor in flight."""


def tile(capability: int, tokens: int, rows: int, group: int, itemsize: int) -> Tile:
    """The tile for x [tokens, inputs] of `itemsize` bytes a number and W [rows, inputs].

    A program has as few rows as a tensor core takes if more would leave under two programs per
    multiprocessor, and twice the warps if there is not even one. Otherwise it has more, because x
    is read once per program, and the work per group of bytes is done once for all its rows.
    """
    stages = nearest(STAGES, capability)
    if itemsize == 4:
        return Tile(16, 4, 32, 8, 4, 3)
    columns = 8 if tokens <= 8 else 32
    if group:
        slices = 8 if group == 32 or columns == 8 else 4
        return Tile(32, slices, group, columns, slices, 4 if group < 128 else 3)
    if columns == 32:
        return Tile(16 if rows <= SPARSE_ROWS else 32, 4, 64, 32, 4, 4)
    if rows <= SPARSE_ROWS:
        return Tile(16, 8, 64, 8, 8, min(stages, 5))
    if rows < MANY_ROWS:
        return Tile(16, 4, 64, 8, 4, stages)
    return Tile(32, 4, 64, 8, 4, min(stages, 5))


def linear(
    x: torch.Tensor,
    matrix: Matrix,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """As `reference.linear`. A float32 result of bfloat16 operands is never rounded to bfloat16."""
    wanted = dtype or x.dtype
    exactly = wanted != x.dtype
    if (len(x) > FEW and not exactly) or (matrix.group and x.dtype == torch.float32):
        return _product_of_many(x, matrix, bias)
    x = x.contiguous()
    tokens, (rows, inputs) = len(x), matrix.weight.shape
    out = torch.empty(tokens, rows, dtype=wanted, device=x.device)
    shape = tile(capability_of(x.device), tokens, rows, matrix.group, x.element_size())
    _few[(triton.cdiv(rows, shape.rows), triton.cdiv(tokens, shape.tokens))](
        matrix.weight,
        matrix.scales if matrix.group else x,
        matrix.biases if matrix.group else x,
        x,
        x if bias is None else bias,
        out,
        tokens,
        rows,
        inputs,
        **_constants(shape, matrix.group, bias is not None),
        num_warps=shape.warps,
        num_stages=shape.stages,
    )
    return out


def _constants(shape: Tile, group: int, bias: bool) -> dict[str, Any]:
    return {
        "GROUP": group,
        "BIAS": bias,
        "ROWS": shape.rows,
        "SLICES": shape.slices,
        "WIDTH": shape.width,
        "TOKENS": shape.tokens,
    }


def _product_of_many(x: torch.Tensor, matrix: Matrix, bias: torch.Tensor | None) -> torch.Tensor:
    if matrix.scales is None or matrix.biases is None:
        return torch.nn.functional.linear(x, matrix.weight, bias)
    rows, inputs = matrix.weight.shape
    step = max(SCRATCH // (inputs * x.element_size()), 1)
    scratch = x.new_empty(min(step, rows), inputs)
    out = x.new_empty(len(x), rows)
    for begin in range(0, rows, step):
        some = slice(begin, begin + step)
        weight = scratch[: len(matrix.weight[some])]
        _widen[(triton.cdiv(weight.numel(), WIDENED),)](
            matrix.weight[some],
            matrix.scales[some],
            matrix.biases[some],
            weight,
            weight.numel(),
            GROUP=matrix.group,
            WIDENED=WIDENED,
        )
        if bias is None:
            torch.mm(x, weight.T, out=out[:, some])
        else:
            torch.addmm(bias[some], x, weight.T, out=out[:, some])
    return out


def examples(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernels."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int, wanted: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(device, wanted)

    for tokens, rows, inputs in ((1, 33, 64), (9, 35, 96), (33, 5, 96), (5, SPARSE_ROWS + 3, 192)):
        yield normal(tokens, inputs), Matrix(normal(rows, inputs)), normal(rows)
    for tokens, rows in ((3, 32), (35, 32), (9, SPARSE_ROWS + 3)):
        yield normal(tokens, 64), Matrix(normal(rows, 64)), normal(rows), torch.float32
    if dtype != torch.float32:  # which has a single tile
        yield normal(2, 64), Matrix(normal(MANY_ROWS + 5, 64)), None, torch.float32
    for tokens, rows, inputs, group in ((1, 33, 192, 64), (3, 5, 96, 32), (9, 7, 384, 128)):
        for scale_dtype, some in ((dtype, tokens), (torch.float32, FEW + tokens)):
            codes = torch.randint(256, (rows, inputs), generator=random, dtype=torch.uint8)
            scales = normal(rows, inputs // group, wanted=scale_dtype) / 256
            biases = normal(rows, inputs // group, wanted=scale_dtype)
            yield normal(some, inputs), Matrix(codes.to(device), scales, biases), normal(rows)
