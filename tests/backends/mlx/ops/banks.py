"""Random MXFP4 banks, as the kernels take them and as float64 numbers."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection
from tests.support.released_tensors import Values, mxfp4

Generator = np.random.Generator


@dataclass(frozen=True)
class Bank:
    """`matrices` [slots, outputs, inputs] in float64 beside the kernels' arrays of the same."""

    blocks: mx.array
    scales: mx.array
    matrices: Values

    def projection(self, bias: mx.array) -> Projection:
        return Projection(self.blocks, self.scales, bias)


def bank(rng: Generator, slots: int, outputs: int, inputs: int) -> Bank:
    """All sixteen codes, scales over 2^-7 to 2^-2."""
    codes = rng.integers(0, 256, (slots, outputs, inputs // 2), np.uint8)
    scales = rng.integers(120, 126, (slots, outputs, inputs // 32), np.uint8)
    return Bank(mx.array(codes.view("<u4")), mx.array(scales), mxfp4(codes, scales))


def normal(rng: Generator, *shape: int) -> tuple[mx.array, Values]:
    """float32 for the kernel, the same values in float64."""
    values = rng.standard_normal(shape, np.float32)
    return mx.array(values), values.astype(np.float64)


def choices(rng: Generator, tokens: int, k: int, experts: int) -> NDArray[np.uint32]:
    """[tokens, k] distinct experts for each token."""
    return np.stack([rng.permutation(experts)[:k] for _ in range(tokens)]).astype(np.uint32)
