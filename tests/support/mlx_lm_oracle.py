"""mlx-lm's gpt-oss on a checkpoint, in float32.

It rounds YaRN's correction range where the released config says not to; `exact` puts the right
periods in its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.rope import periods


def load(folder: Path, *, exact: bool) -> Any:
    """exact: with our periods instead of its own."""
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    if exact:
        ours = mx.array(periods(ModelConfig.from_file(folder / "config.json")).astype(np.float32))
        for layer in model.layers:
            rope = layer.self_attn.rope
            assert rope._freqs.shape == ours.shape
            rope._freqs = ours
    return model


def logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    """[tokens] -> [tokens, vocabulary]"""
    return np.array(model(mx.array([ids]))[0])
