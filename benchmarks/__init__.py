"""Measurements, and the checkpoints they run on; not installed."""

from __future__ import annotations

import sys
from types import TracebackType

EXTRAS = {
    "matplotlib": "benchmarks",
    "mlx_lm": "oracles",
    "pytest": "dev",
    "torch": "cuda",
    "transformers": "oracles",
    "triton": "cuda",
}
"""What of pyproject.toml installs a package that a benchmark needs."""


def _say_what_is_missing(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """One line for a package that is not installed; anything else as ever."""
    name = (
        error.name.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name
        else ""
    )
    if name in EXTRAS:
        print(
            f"error: {name} is not installed: pip install -e '.[{EXTRAS[name]}]'", file=sys.stderr
        )
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:
    sys.excepthook = _say_what_is_missing
