"""Small JSON files and headers, read with a bound and refused in one line."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.regular import read_regular

JSON_LIMIT = 4 << 20
"""The most bytes of a config, index or header; gpt-oss-120b's take a tenth of a megabyte. Parsed, a
hostile file takes 25 times its size."""

_SHOWN = 80  # characters
_LONG = 10_000  # bits; Python writes out no number beyond 4300 digits


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """A file that holds one JSON object of at most `limit` bytes. Raises CheckpointError."""
    try:
        data = read_regular(path, limit)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_json(data, str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object with no name twice; `where` opens the error's message.

    Raises CheckpointError.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: is not valid JSON: {_one_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: holds a {type(value).__name__}, not a JSON object")
    return value


def shown(value: object) -> str:
    """A value from a file as it can stand in a one-line message: escaped and short."""
    text = _Short().repr(value).encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


class _Short(reprlib.Repr):
    """repr of a value's beginning, so that neither size nor depth costs anything."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = _SHOWN // 3
        self.maxstring = self.maxother = _SHOWN

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > _LONG:
            return f"{'-' if x < 0 else ''}<a number of {x.bit_length()} bits>"
        return str(x)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the name {shown(twice)} occurs twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
