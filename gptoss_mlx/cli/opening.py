"""Opening a model for a command: with a bar, and with those settings alone that were given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gptoss_mlx
from gptoss_mlx.cli.terminal import Bar

if TYPE_CHECKING:
    from gptoss_mlx.engine.engine import Engine

_SETTINGS = (
    *("backend", "device", "memory", "context", "dtype", "embedding", "kv_bits"),
    *("cache", "cache_dir", "cache_disk", "threads"),
)


def take_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of `gptoss_mlx.load` out of a command's options; those given come back."""
    taken = {name: given.pop(name) for name in _SETTINGS}
    if taken["kv_bits"] is not None:
        taken["kv_bits"] = int(taken["kv_bits"])
    return {name: value for name, value in taken.items() if value is not None}


def open_with_bar(model: str, settings: dict[str, Any], *, bar_shown: bool, after: float) -> Engine:
    """The engine of a model. The bar appears after so many seconds of loading."""
    label = f"Loading {Path(model).name or model}"
    with Bar(label, "bytes", shown=bar_shown, after=after) as bar:
        return gptoss_mlx.load(model, progress=bar.update, **settings)
