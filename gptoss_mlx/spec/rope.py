"""YaRN's rotary frequencies, exactly as the released model was trained with them.

Peng et al., "YaRN: Efficient Context Window Extension" (2023), sections 3.2 to 3.4. The released
config says `truncate: false`: the correction range is not rounded to whole dimensions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.spec.config import ModelConfig


def periods(config: ModelConfig) -> NDArray[np.float64]:
    """[head_dim / 2] tokens per radian of each rotated pair: the inverse of its frequency."""
    dim, base = config.head_dim, config.rope_theta
    extrapolated: NDArray[np.float64] = base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    yarn = config.rope_scaling
    if yarn is None:
        return extrapolated

    def dimension(rotations: float) -> float:
        """The pair that turns `rotations` times over the original context, as a real number."""
        length = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(base))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    interpolated = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    slow, fast = 1 / (yarn.factor * extrapolated), 1 / extrapolated
    mixed: NDArray[np.float64] = 1 / (interpolated * slow + (1 - interpolated) * fast)
    return mixed


def magnitude(config: ModelConfig) -> float:
    """The factor YaRN puts on queries and on keys: 0.1 ln(factor) + 1."""
    yarn = config.rope_scaling
    return 1.0 if yarn is None or yarn.factor <= 1 else 0.1 * math.log(yarn.factor) + 1.0
