"""MXFP4 as a bank keeps it: 32 four-bit floats to one power-of-two scale.

`pack` arranges what a file holds for the kernels, `dequantize` gives the numbers back. OCP
Microscaling Formats v1.0, section 5.3: e2m1 codes, e8m0 scales.
"""

from __future__ import annotations

import torch

GROUP = 32  # values to a scale
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of the codes 0 to 7; 8 to 15 are their negatives."""
BIAS = 127  # of a scale's exponent


def pack(blocks: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a file holds -> what a bank keeps, the same bytes in all.

    blocks [..., outputs, inputs / 2], the even input in the low half of a byte; scales
    [..., outputs, inputs / 32]; both uint8.
    """
    return blocks, scales


def dequantize(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Packed blocks and scales -> float32 [..., outputs, inputs], exactly."""
    values = torch.tensor((*VALUES, *(-v for v in VALUES)), device=blocks.device)
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)
    exponents = torch.repeat_interleave(scales.to(torch.int32) - BIAS, GROUP, dim=-1)
    return torch.ldexp(values[codes.to(torch.int32)], exponents)
