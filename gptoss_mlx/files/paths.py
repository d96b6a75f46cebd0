"""Where this package keeps its own files: a cache folder and a data folder for each user."""

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
    return _folder("GPTOSS_CACHE", "Caches", "XDG_CACHE_HOME", ".cache")


def data_folder() -> Path:
    """The folder for what a user would miss, such as conversations; it need not exist yet.

    `$GPTOSS_DATA` if set, else `~/Library/Application Support/gptoss_mlx` on macOS,
    else `$XDG_DATA_HOME/gptoss_mlx` or `~/.local/share/gptoss_mlx`.
    Raises OSError where a home folder is needed and there is none.
    """
    return _folder("GPTOSS_DATA", "Application Support", "XDG_DATA_HOME", ".local/share")


def _folder(own: str, library: str, xdg: str, below_home: str) -> Path:
    """own, xdg: names of environment variables; library: a folder below ~/Library on macOS."""
    try:
        if named := os.environ.get(own):
            return Path(named).expanduser()
        if sys.platform == "darwin":
            return Path.home() / "Library" / library / "gptoss_mlx"
        # The XDG specification says to ignore a relative path there.
        base = Path(os.environ.get(xdg, ""))
        return (base if base.is_absolute() else Path.home() / below_home) / "gptoss_mlx"
    except RuntimeError as error:  # pathlib's error for a user without a home
        raise OSError(
            errno.ENOENT, f"there is no home folder; set {own} to a folder for files"
        ) from error


def expanded(text: str) -> Path:
    """A path with ~ expanded to a home folder; as in a shell, ~ with an unknown user stays."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path
