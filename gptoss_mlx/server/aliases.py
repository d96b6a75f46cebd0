"""Names of tools as the model sees them: a client may use any, Harmony takes letters and digits.

The model has tools of its own called `python` and `browser`, and writes their calls instead of
those of a client's tools of these names; so these get another name, and every other keeps its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gptoss_mlx.harmony.tools import TOOL_NAME

TAKEN = ("python", "browser", "bash", "container", "functions", "assistant")

_OTHER = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST = 100


class Aliases:
    """The names of one request's tools, both ways. reserved: those that no tool gets."""

    def __init__(self, names: Iterable[str], reserved: Iterable[str] = ()) -> None:
        self._shown: dict[str, str] = {}
        self._original = {name: name for name in reserved}
        for name in names:
            self.shown(name)

    def shown(self, name: str) -> str:
        """The name for the model."""
        if name not in self._shown:
            plain = _plain(name)
            alias, number = plain, 2
            while alias in self._original:
                alias, number = f"{plain}_{number}", number + 1
            self._shown[name], self._original[alias] = alias, name
        return self._shown[name]

    def original(self, shown: str) -> str:
        """The name that the client knows."""
        return self._original.get(shown, shown)

    def rename(self, function: Mapping[str, Any]) -> dict[str, Any]:
        """A function, or a call of one, under the name for the model."""
        name = function.get("name")
        return {**function, "name": self.shown(name)} if isinstance(name, str) else {**function}


def _plain(name: str) -> str:
    if name in TAKEN:
        return f"{name}_tool"
    if TOOL_NAME.fullmatch(name):
        return name
    return _OTHER.sub("_", name)[:_LONGEST] or "tool"
