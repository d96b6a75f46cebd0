"""Where this package keeps its own files: one cache folder for each user."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder for files this package makes; it need not exist yet.

    `$GPTOSS_CACHE` if set, else `~/Library/Caches/gptoss_mlx` on macOS,
    else `$XDG_CACHE_HOME/gptoss_mlx` or `~/.cache/gptoss_mlx`.
    Raises OSError where a home folder is needed and there is none.
    """
    try:
        if own := os.environ.get("GPTOSS_CACHE"):
            return Path(own).expanduser()
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "gptoss_mlx"
        # The XDG specification says to ignore a relative path there.
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (base if base.is_absolute() else Path.home() / ".cache") / "gptoss_mlx"
    except RuntimeError as error:  # pathlib's error for a user without a home
        raise OSError(
            errno.ENOENT, "there is no home folder; set GPTOSS_CACHE to a folder for files"
        ) from error


def expanded(text: str) -> Path:
    """A path with ~ expanded to a home folder; as in a shell, ~ with an unknown user stays."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path
