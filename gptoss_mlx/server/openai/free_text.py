"""Free text: the input of a custom tool, which the model writes as JSON, `{"input": "..."}`.

A model may write the text bare all the same; then that is the input.
"""

from __future__ import annotations

import json
import re

_OPENING = '{"input":"'
_HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_SURROGATES = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_UNITS = re.compile(
    rf'(?:[^"\\]+|{_SURROGATES}|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{{4}}|\\["\\/bfnrt])*'
)
"""Characters and escapes that are complete."""


class InputDecoder:
    """Takes the arguments piece by piece, and gives the input as far as it is known."""

    def __init__(self) -> None:
        self._pending = ""
        self._inside = self._bare = self._closed = False

    def push(self, text: str) -> str:
        """What can be said of the input after a further piece of the arguments."""
        self._pending += text
        if not (self._inside or self._bare):
            self._open()
        if self._bare:
            return self._take(len(self._pending))
        if not self._inside or self._closed:
            return ""
        units = _UNITS.match(self._pending)
        end = 0 if units is None else units.end()
        self._closed = self._pending[end : end + 1] == '"'
        decoded: str = json.loads(f'"{self._take(end)}"', strict=False)
        return decoded

    def end(self) -> str:
        """The rest, as it is, after the last piece."""
        return "" if self._closed else self._take(len(self._pending))

    def _open(self) -> None:
        """Find where the input begins, if that is known."""
        if (head := _HEAD.match(self._pending)) is not None:
            self._take(head.end())
            self._inside = True
        elif not _OPENING.startswith("".join(self._pending.split())):
            self._bare = True

    def _take(self, length: int) -> str:
        taken, self._pending = self._pending[:length], self._pending[length:]
        return taken
