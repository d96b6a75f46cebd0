"""What `load` takes, from Python or a command line, as what it means."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown


def model_name(model: object) -> str:
    """A model argument as text: a path is that of a folder. Raises OptionError."""
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(name, str):
        raise OptionError(f"model is {shown(model)}, but must be a folder, an id or tiny")
    return name


def one_of(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises OptionError unless the value is None, which is left out, or a choice."""
    if value is not None and value not in choices:
        known = " or ".join(str(choice) for choice in choices)
        raise OptionError(f"{name} is {shown(value)}, but must be {known}")


def whole_number(
    name: str, value: object, parse: Callable[[str], int], says: str, low: float = 1
) -> int | None:
    """A whole number, `low` or more, or a text that says one; None is left out.

    Raises OptionError.
    """
    if value is None:
        return None
    number: float = math.nan
    with suppress(ValueError, OverflowError):  # what is no number is refused below
        if isinstance(value, str):
            number = parse(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            number = int(value)
    if not number >= low:
        raise OptionError(f"{name} is {shown(value)}, but must be {says}")
    return int(number)
