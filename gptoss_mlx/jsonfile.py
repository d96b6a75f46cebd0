"""Small JSON files and headers, read with a bound and refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gptoss_mlx.errors import CheckpointError

_JSON_LIMIT = 16 << 20


def read_json(path: Path, limit: int = _JSON_LIMIT) -> dict[str, Any]:
    """A file that holds one JSON object of at most `limit` bytes. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, limit))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if size > limit:
        raise CheckpointError(f"{path}: is larger than {limit} bytes, the limit for such a file")
    return parse_json(data, str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """One JSON object with no name twice; `where` opens the message. Raises CheckpointError."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: is not valid JSON: {_one_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: holds a {type(value).__name__}, not a JSON object")
    return value


def shown(value: object) -> str:
    """A value from a file as it can stand in a one-line message: escaped and short."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in result if names.count(name) > 1)
        raise ValueError(f"the name {shown(twice)} occurs twice")
    return result


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
