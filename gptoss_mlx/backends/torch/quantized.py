"""Dequantization of matrices in MLX's quantized formats.

Codes of `bits` bits are stored consecutively, the lowest bits first. Affine: code * scale + bias by
group. mxfp4, mxfp8, nvfp4: e2m1 or e4m3 codes times a scale, a power of two (e8m0) or in nvfp4 an
e4m3.
"""

from __future__ import annotations

import torch

from gptoss_mlx.backends.torch.mxfp4 import BIAS, VALUES
from gptoss_mlx.spec.config import QuantizationSpec

PIECE = 16 << 20  # values dequantized at a time, which bounds the temporary memory


def dequantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    biases: torch.Tensor | None,
    spec: QuantizationSpec,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Dequantize a matrix -> [outputs, inputs] in `dtype`, each value rounded once.

    codes [outputs, inputs * bits / 8] uint8; scales and biases [outputs, inputs / group_size],
    floats in affine mode and else uint8.
    """
    outputs, inputs = codes.shape[0], codes.shape[1] * 8 // spec.bits
    out = torch.empty(outputs, inputs, dtype=dtype, device=codes.device)
    step = max(1, PIECE // inputs)
    for i in range(0, outputs, step):
        rows = slice(i, i + step)
        values = unpack(codes[rows], spec.bits)
        values = values.reshape(len(values), -1, spec.group_size)
        if biases is not None:
            scale, bias = scales[rows, :, None].float(), biases[rows, :, None].float()
            wide = values.float() * scale + bias
        else:
            wide = _floats(values, spec) * _scales(scales[rows], spec)[..., None]
        out[rows] = wide.flatten(1).to(dtype)
    return out


def unpack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [n, bytes] -> the codes in them, uint8 [n, bytes * 8 / bits]"""
    if bits == 8:
        return codes
    places = torch.arange(8, dtype=torch.uint8, device=codes.device)
    stream = (codes[..., None] >> places & 1).reshape(len(codes), -1, bits)
    return (stream << places[:bits]).sum(-1, dtype=torch.uint8)


def _floats(codes: torch.Tensor, spec: QuantizationSpec) -> torch.Tensor:
    if spec.bits == 8:
        return codes.contiguous().view(torch.float8_e4m3fn).float()
    values = torch.tensor((*VALUES, *(-v for v in VALUES)), device=codes.device)
    return values[codes.long()]


def _scales(scales: torch.Tensor, spec: QuantizationSpec) -> torch.Tensor:
    if spec.mode == "nvfp4":
        return scales.view(torch.float8_e4m3fn).float()
    ones = torch.ones(scales.shape, device=scales.device)
    return torch.ldexp(ones, scales.int() - BIAS)
