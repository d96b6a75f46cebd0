"""Helpers of the attention kernels: products, rounding, exponentials of base 2, sizes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch.triton.capability import INTERPRETED

LOG2E = tl.constexpr(1.4426950408889634)
"""Exponentials have base 2: exp(x) is exp2(x * LOG2E)."""

LOWEST = tl.constexpr(-1e30)
"""The least value of a sink logit: minus infinity would make differences of logits NaN."""

PROCESSORS = 132  # multiprocessors assumed where there is no card


@triton.jit
def dot(a, b, c):
    """a b + c, summed in float32; float32 operands are multiplied in full precision."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def narrow(x, to: tl.constexpr):
    """float32 x rounded to the nearest value of a type; the interpreter's own cast truncates."""
    if INTERPRETED and to == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(to)


@triton.jit
def sink_logits(sinks, heads, mask):
    """The heads' sink logits in base 2, at least LOWEST."""
    sink = tl.load(sinks + heads, mask=mask, other=0.0).to(tl.float32)
    return tl.maximum(sink * LOG2E, LOWEST)


def padded(size: int) -> int:
    """A size rounded up for tl.dot: a power of two, at least 16."""
    return max(16, int(triton.next_power_of_2(size)))


def processors(device: torch.device) -> int:
    """How many multiprocessors a card has."""
    if device.type != "cuda":
        return PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
