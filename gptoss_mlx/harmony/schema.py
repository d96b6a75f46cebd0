"""JSON schemas of tools, rewritten so that Harmony's renderer loses nothing of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 48  # the renderer reads JSON of at most 128 levels


def clean(value: Any, depth: int = 0) -> Any:
    """Plain JSON data: lone surrogates become U+FFFD, numbers that are none become null."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return str(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= MAX_DEPTH:
        return None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(inner, depth + 1) for inner in value]
    return clean(str(value))


def normalise(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of the same meaning that renders without `any`."""
    result: dict[str, Any] = clean(schema)
    return result
