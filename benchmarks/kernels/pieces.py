"""What the compared kernels work on: gpt-oss's sizes, random weights, launches in the emulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.matrix import Matrix
from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection
from gptoss_mlx.spec.config import QuantizationSpec
from tests.support.metal_emulator import Emulator


@dataclass(frozen=True)
class Sizes:
    """gpt-oss-20b's; each product is launched on a part of what is marked so."""

    hidden: int = 2880
    inner: int = 2880
    experts: int = 32
    active: int = 4
    vocabulary: int = 201088
    heads: int = 64
    kv_heads: int = 8
    head_dim: int = 64
    prompt: int = 512  # tokens
    part_rows: int = 201088 // 16  # of the vocabulary
    part_slots: int = 1  # of the experts
    part_outputs: int = 256  # of an expert

    @property
    def visits(self) -> int:
        """Rows of an expert in a prompt, if each has as many."""
        return self.prompt * self.active // self.experts


@dataclass(frozen=True)
class Piece:
    """A launch; `times` of it make the job's."""

    run: Callable[[Emulator], object]
    times: float = 1.0


@dataclass(frozen=True)
class Job:
    """What is computed, who computes it, and what that takes besides the launches.

    weights: of the whole job. floor: bytes, each needed one once. elsewhere: bytes that separate
    elementwise launches read and write, computed, not emulated; `others` is their number.
    """

    name: str
    who: str
    dtype: mx.Dtype
    pieces: tuple[Piece, ...]
    weights: int
    floor: int
    elsewhere: int = 0
    others: int = 0


def random(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Of a normal distribution."""
    return mx.random.normal(shape, key=mx.random.key(1)).astype(dtype)


def bank(slots: int, outputs: int, inputs: int, dtype: mx.Dtype) -> Projection:
    """Random matrices and biases of as many experts."""
    blocks = mx.random.randint(0, 1 << 31, (slots, outputs, inputs // 8), key=mx.random.key(2))
    scales = mx.random.randint(115, 125, (slots, outputs, inputs // 32), key=mx.random.key(3))
    bias = random((slots, outputs), dtype)
    return Projection(blocks.astype(mx.uint32), scales.astype(mx.uint8), bias)


def affine(outputs: int, inputs: int, dtype: mx.Dtype) -> Matrix:
    """8 bits, groups of 64."""
    words = mx.random.randint(0, 1 << 31, (outputs, inputs // 4), key=mx.random.key(2))
    scales = random((outputs, inputs // 64), dtype)
    return Matrix(
        words.astype(mx.uint32),
        scales,
        scales + 1,
        QuantizationSpec(group_size=64, bits=8, mode="affine"),
    )
