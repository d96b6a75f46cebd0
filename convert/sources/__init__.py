"""Where weights may come from; each module recognises one layout and describes it as a `Source`."""

from __future__ import annotations

from pathlib import Path

from gptoss_mlx.errors import CheckpointError

from ..source import Source
from . import gguf, mlx_lm, original, released

KINDS = (gguf, original, mlx_lm, released)
"""In the order they are tried; the last one takes what is left and says what is wrong with it."""


def open_source(path: Path, *, exact: bool = False) -> Source:
    """Validate headers and describe what is there; no weights are read.

    exact: refuse, now or while reading, whatever would not give the released bytes.
    Raises CheckpointError.
    """
    kind = next((kind for kind in KINDS if kind.matches(path)), released)
    source: Source = kind.read(path, exact)
    if exact and not source.exact:
        raise CheckpointError(
            f"{path}: its weights are quantized further than the release,"
            " which cannot be written from it"
        )
    return source
