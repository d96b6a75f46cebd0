"""Short words in place of very long ones, for a library that is slow on long words."""

from __future__ import annotations

import re
from typing import Any

from gptoss_mlx.harmony.words import LONG

_LONG_WORD = re.compile(rf"\S{{{LONG},}}")
_MARKS = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))  # for private use


class StandIns:
    """Stand-ins for the long words of one text. used: the characters that the text has."""

    def __init__(self, used: frozenset[str]) -> None:
        self._mark = next(mark for mark in map(chr, _MARKS) if mark not in used)
        self._numbers: dict[str, int] = {}

    def put(self, value: Any) -> Any:
        """JSON data with every long word replaced, in keys as well."""
        if isinstance(value, str):
            return _LONG_WORD.sub(self._stand_in, value)
        if isinstance(value, dict):
            return {self.put(key): self.put(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.put(inner) for inner in value]
        return value

    def restore(self, text: str) -> str:
        """A text rendered from such data, with the original words."""
        if not self._numbers:
            return text
        words = list(self._numbers)
        pattern = rf"{self._mark}(\d+)(?:null)?{self._mark}"
        return re.sub(pattern, lambda match: words[int(match[1])], text)

    def _stand_in(self, match: re.Match[str]) -> str:
        number = self._numbers.setdefault(match[0], len(self._numbers))
        null = "null" if "null" in match[0] else ""  # which the library looks for in a type
        return f"{self._mark}{number}{null}{self._mark}"
