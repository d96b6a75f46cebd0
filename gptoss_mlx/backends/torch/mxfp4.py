"""MXFP4 weights in a bank's layout: groups of 32 four-bit floats share a power-of-two scale.

`pack` rearranges a file's blocks and scales for the kernels, `dequantize` gives the float values.
OCP Microscaling Formats v1.0, section 5.3: e2m1 codes, e8m0 scales.

A bank's blocks are bytes [inputs / 32, outputs, 16], its scales [inputs / 32, outputs]: what
consecutive rows read of a group is contiguous. Of 16 rows' scales, those of rows r and r + 8 are
adjacent.

The 16 bytes of a group are four words of 32 bits. Of each quarter q of the group, word i holds the
codes of inputs 8 q + 2 i in its low half and 8 q + 2 i + 1 in its high half. Rotated left as FIELDS
says, the word has a quarter's two codes at PLACE of its halves, which is bfloat16's sign, the two
low bits of its exponent and the first bit of its mantissa: as bfloat16 they are the values times
2^-126. No rotations fit four such fields into 16 bits, so the last quarter's field is split in two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

GROUP = 32  # values to a scale
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of the codes 0 to 7; codes 8 to 15 are their negatives."""
BIAS = 127  # of a scale's exponent

PLACE = 0x81C0  # bits of a code within 16: its sign at bit 15, its magnitude at bits 8 to 6
FIELDS = ((0, 0, PLACE), (1, 6, PLACE), (2, 12, PLACE), (3, 10, 0x8180), (3, 2, 0x0040))
"""(quarter, rotation, bits): once rotated, `bits` of both halves belong to the quarter's codes."""

HELD = 60
"""Kernels hold weights as bfloat16 times 2^-HELD, and multiply their sums by 2^HELD.

A code at PLACE is its value times 2^-126, and no bfloat16 power of two is above 2^127, so a single
multiplication is exact for 134 scales only: here 55 to 188, weights from 2^-73 to 2^63. With
smaller scales weights are rounded; a larger scale is refused when a model is opened.
"""
LEAST_SCALE, MOST_SCALE = HELD - 5, HELD + 128


def pack(blocks: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A file's blocks and scales -> a bank's, of the same shapes and dtype.

    blocks [..., outputs, inputs / 2], the even input in the low half of a byte; scales
    [..., outputs, inputs / 32]; both uint8; outputs a multiple of 16. Needs memory for about ten
    times one expert.
    """
    packed, turned = torch.empty_like(blocks), torch.empty_like(scales)
    arrays = (t.reshape(-1, *t.shape[-2:]) for t in (blocks, packed, scales, turned))
    for source, target, scale, target_scale in zip(*arrays, strict=True):
        outputs, groups = scale.shape
        pairs = source.reshape(outputs, groups, 4, 4).to(torch.int32)
        codes = (pairs & 8) << 12 | (pairs & 7) << 6 | (pairs & 0x80) << 24 | (pairs & 0x70) << 18
        words = torch.zeros_like(codes[:, :, 0])
        for quarter, rotation, bits in FIELDS:
            words |= _left(codes[:, :, quarter] & _halves(bits), 32 - rotation)
        target.view(groups, outputs, 16).copy_(words.transpose(0, 1).contiguous().view(torch.uint8))
        rows = scale.T.reshape(groups, -1, 2, 8).transpose(2, 3)
        target_scale.view(groups, -1, 8, 2).copy_(rows)
    return packed, turned


def unpack(blocks: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of `pack`: a bank's blocks and scales -> a file's."""
    *experts, outputs, groups = scales.shape
    words = blocks.reshape(*experts, groups, outputs, 16).contiguous().view(torch.int32)
    codes = words.new_zeros(*experts, groups, outputs, 4, 4)
    for quarter, rotation, bits in FIELDS:
        codes[..., quarter, :] |= _left(words, rotation) & _halves(bits)
    pairs = (codes >> 12 & 8) | (codes >> 6 & 7) | (codes >> 24 & 0x80) | (codes >> 18 & 0x70)
    bytes_ = pairs.to(torch.uint8).flatten(-2).transpose(-3, -2)
    rows = scales.reshape(*experts, groups, -1, 8, 2).transpose(-2, -1)
    turned = rows.reshape(*experts, groups, outputs).transpose(-2, -1)
    return bytes_.reshape(blocks.shape), turned.reshape(scales.shape)


def dequantize(blocks: torch.Tensor, scales: torch.Tensor, packed: bool = True) -> torch.Tensor:
    """Blocks and scales -> float32 [..., outputs, inputs], exactly.

    packed: whether they are in a bank's layout for the kernels, else in a file's.
    """
    if packed:
        blocks, scales = unpack(blocks, scales)
    values = torch.tensor((*VALUES, *(-v for v in VALUES)), device=blocks.device)
    # The two values of each byte.
    pairs = torch.stack((values.repeat(16), values.repeat_interleave(16)), dim=1)
    powers = torch.ldexp(
        torch.ones_like(values).repeat(16), torch.arange(256, device=blocks.device) - BIAS
    )
    numbers = F.embedding(blocks.int(), pairs).reshape(*scales.shape, GROUP)
    return numbers.mul_(powers[scales.int()][..., None]).flatten(-2)


def _left(words: torch.Tensor, rotation: int) -> torch.Tensor:
    """int32 words rotated left by 0 to 32 bits."""
    if rotation % 32 == 0:
        return words
    return words << rotation | (words >> (32 - rotation) & ((1 << rotation) - 1))


def _halves(bits: int) -> int:
    """The same 16 bits in both halves of an int32."""
    word = bits << 16 | bits
    return word - (1 << 32) if word >> 31 else word
