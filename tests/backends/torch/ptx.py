"""The few instructions of PTX that the experts' kernels have by hand, on arrays of registers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.uint32]


def run(text: str, inputs: Sequence[Words], outputs: int) -> list[Words]:
    """$0, $1, .. after the text, which has `inputs` in the registers after those.

    Raises ValueError at an instruction it does not know.
    """
    registers = {f"${outputs + i}": array for i, array in enumerate(inputs)}
    for line in text.strip().strip("{}").split(";"):
        if not line.strip() or line.strip().startswith(".reg"):
            continue
        operation, rest = line.split(maxsplit=1)
        target, *names = (name.strip() for name in rest.split(","))
        values = [registers[n] if n in registers else np.uint32(int(n, 0)) for n in names]
        registers[target] = np.asarray(_apply(operation, values), np.uint32)
    return [registers[f"${i}"] for i in range(outputs)]


def _apply(operation: str, values: list[Words]) -> Words:
    a, b, c, table = [*values, *[np.uint32(0)] * 3][:4]
    match operation:
        case "mov.b32":
            return a
        case "and.b32":
            return a & b
        case "shf.l.wrap.b32":
            return (a.astype(np.uint64) << 32 | b.astype(np.uint64)) << (c & 31) >> 32 & 0xFFFFFFFF
        case "lop3.b32":
            return _lop3(a, b, c, int(table))
        case "fma.rn.bf16x2":
            x, y, z = (bfloat16(value) for value in (a, b, c))
            return _joined((x * y + z).to(torch.bfloat16))
    raise ValueError(f"no instruction {re.escape(operation)} here")


def _lop3(a: Words, b: Words, c: Words, table: int) -> Words:
    """Bit i of the table is the result where bits of a, b and c read as i."""
    out = np.zeros_like(a)
    for i in range(8):
        if table >> i & 1:
            x, y, z = (v if i >> n & 1 else ~v for v, n in ((a, 2), (b, 1), (c, 0)))
            out |= x & y & z
    return out


def bfloat16(words: Words) -> torch.Tensor:
    """Two bfloat16 of each word in float64, the low half first."""
    pairs = np.ascontiguousarray(np.atleast_1d(words)).view(np.int16)
    return torch.from_numpy(pairs.copy()).view(torch.bfloat16).double().reshape(-1, 2)


def _joined(pairs: torch.Tensor) -> Words:
    return pairs.contiguous().view(torch.int16).numpy().view(np.uint32).ravel()
