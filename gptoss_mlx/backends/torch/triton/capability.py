"""A card's compute capability, and whether Triton interprets kernels in place of compiling them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether kernels run in Triton's interpreter, where operands in bfloat16 must be widened."""

T = TypeVar("T")


def capability_of(device: torch.device) -> int:
    """A card's compute capability, times ten; 90 for the interpreter."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def nearest(table: Mapping[int, T], capability: int) -> T:
    """A table's entry for a capability: that of the highest not above it, else the lowest."""
    return table[max((c for c in table if c <= capability), default=min(table))]
