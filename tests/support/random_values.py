"""Random values for each tensor of a gpt-oss checkpoint, by its name.

Their magnitudes keep activations near one, so that every part of the model matters: weights of
about 1/sqrt(columns), sinks and biases that are not zero, gates beyond the SwiGLU limit.
The same generator gives the same values on every platform.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.spec.config import ModelConfig

Draw = Callable[[np.random.Generator, int], NDArray[Any]]
"""(generator, count) -> that many values as stored: uint16 for BF16, uint8 for U8."""

# Root mean square of the sixteen E2M1 codes, and of 2^k for k in -1, 0, 1.
_CODE_RMS = math.sqrt(68.5 / 8)
_SCALE_RMS = math.sqrt(5.25 / 3)
# Standard deviation of the sum of four bytes.
_SUM_STD = math.sqrt(4 * (256**2 - 1) / 12)


def draw(name: str, config: ModelConfig) -> Draw:
    """How a tensor's values are drawn, by its name."""
    normal = normal_of(name, config)
    if normal is not None:
        mean, std = np.float32(normal[0]), np.float32(normal[1])
        return lambda rng, count: _bf16(mean + std * _normal(rng, count))
    if name.endswith("gate_up_proj_bias"):
        return _heavy_tailed
    if name.endswith("_blocks"):
        return _bytes
    if not name.endswith("_scales"):
        raise AssertionError(name)
    lowest = middle_scale(name, config) - 1
    return lambda rng, count: _bytes(rng, count) % np.uint8(3) + np.uint8(lowest)


def normal_of(name: str, config: ModelConfig) -> tuple[float, float] | None:
    """Mean and standard deviation of a tensor's values, where those are normal."""
    hidden = config.hidden_size
    unit = 1 / math.sqrt(hidden)
    normals = {
        r"layernorm\.weight|norm\.weight": (1.0, 0.1),
        r"embed_tokens\.weight": (0.0, 1.0),
        r"lm_head\.weight": (0.0, 2 * unit),
        # About where the log of a window's summed scores lies.
        r"sinks": (5.0, 3.0),
        r"[qkv]_proj\.weight|router\.weight": (0.0, unit),
        r"o_proj\.weight": (0.0, 1 / math.sqrt(config.num_attention_heads * config.head_dim)),
        r"_proj\.bias|router\.bias|down_proj_bias": (0.0, 0.25),
    }
    for pattern, normal in normals.items():
        if re.search(f"(?:{pattern})$", name):
            return normal
    return None


def middle_scale(name: str, config: ModelConfig) -> int:
    """The byte about which the scales of a tensor of experts lie, each at most one away."""
    width = config.intermediate_size if "down_proj" in name else config.hidden_size
    return 127 + round(math.log2(1 / math.sqrt(width) / _CODE_RMS / _SCALE_RMS))


def _bits(rng: np.random.Generator, count: int) -> NDArray[np.uint32]:
    return rng.integers(0, 1 << 32, count, np.uint32)


def _bytes(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    return _bits(rng, -(-count // 4)).view(np.uint8)[:count]


def _normal(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Nearly normal values: the sum of four bytes, because a logarithm differs by platform."""
    bits = _bits(rng, count)
    pairs = (bits & np.uint32(0x00FF00FF)) + (bits >> np.uint32(8) & np.uint32(0x00FF00FF))
    sums = (pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16))
    return (sums.astype(np.float32) - np.float32(510)) * np.float32(1 / _SUM_STD)


def _heavy_tailed(rng: np.random.Generator, count: int) -> NDArray[np.uint16]:
    """One value in sixteen is large, so that gates and ups pass the SwiGLU limit."""
    values = np.float32(0.5) * _normal(rng, count)
    values[_bits(rng, count) < 1 << 28] *= 16
    return _bf16(values)


def _bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)
