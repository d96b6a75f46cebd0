"""How close two sets of logits are, and the model under test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.model import Transformer, open_model
from gptoss_mlx.models.checkpoint import Checkpoint


def opened(folder: Path, **options: Any) -> Transformer:
    """The model of a folder, float32 unless asked otherwise; its files stay mapped."""
    return open_model(Checkpoint.open(folder), **{"dtype": "float32", **options})


def fresh(model: Transformer, ids: Sequence[int]) -> NDArray[np.float32]:
    """The logits of one pass over a new sequence."""
    return model.evaluate(list(ids), model.new_state())


def relative_l2(ours: NDArray[Any], reference: NDArray[Any]) -> float:
    """|ours - reference| / |reference|, in float64; not a number is infinitely far."""
    reference = reference.astype(np.float64)
    distance = float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))
    return distance if np.isfinite(distance) else np.inf


def worst_row(ours: NDArray[Any], reference: NDArray[Any]) -> float:
    """The largest relative L2 of any single token's logits."""
    return max(relative_l2(a, b) for a, b in zip(ours, reference, strict=True))


def argmax_agreement(ours: NDArray[Any], reference: NDArray[Any]) -> float:
    """The fraction of tokens whose likeliest successor is the same."""
    return float((ours.argmax(axis=-1) == reference.argmax(axis=-1)).mean())
