"""What both kernels of attention are made of: products, the base of exponents, a card's size."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch.triton.build import INTERPRETED

LOG2E = tl.constexpr(1.4426950408889634)
"""Exponents are taken of two: exp(x) is exp2(x * LOG2E)."""

LOWEST = tl.constexpr(-1e30)
"""A sink below is taken for it, so that no difference of two logits is without a value."""

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
PROCESSORS = 132  # that are assumed where there is no card


@triton.jit
def dot(a, b, c):
    """a b + c, the sum in float32; of float32, in all its bits."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def narrow(x, to: tl.constexpr):
    """float32 x rounded to the nearest of another type; the interpreter's own cast cuts it off."""
    if INTERPRETED and to == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(to)


@triton.jit
def sink_logits(sinks, heads, mask):
    """The heads' sinks as exponents of two."""
    sink = tl.load(sinks + heads, mask=mask, other=0.0).to(tl.float32)
    return tl.maximum(sink * LOG2E, LOWEST)


def padded(size: int) -> int:
    """A size as a product of matrices takes it: a power of two, at least 16."""
    return max(16, int(triton.next_power_of_2(size)))


def processors(device: torch.device) -> int:
    """How many multiprocessors a tensor's card has."""
    if device.type != "cuda":
        return PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
