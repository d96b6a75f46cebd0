"""`Printout`: text as it arrives, of which the beginning and the end are kept."""

from __future__ import annotations

import codecs
import re

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_OVERWRITTEN = re.compile(r"[^\n\r]*\r(?![\n\r])")


class Printout:
    """Bytes in UTF-8, as text of at most `limit` characters, cut in the middle.

    It never holds more than a few times the limit, however much arrives. nbytes: all that arrived.
    """

    def __init__(self, limit: int) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._half = limit // 2
        self._head, self._tail = "", ""
        self._count = self.nbytes = 0

    def add(self, data: bytes, final: bool = False) -> None:
        text = self._decoder.decode(data, final)
        self.nbytes += len(data)
        self._count += len(text)
        room = self._half - len(self._head)
        self._head += text[:room]
        self._tail = (self._tail + text[room:] if room < len(text) else self._tail)[-self._half :]

    def text(self) -> str:
        """As a terminal would show it: colours are left out, and lines written over."""
        self.add(b"", final=True)
        missing = self._count - len(self._head) - len(self._tail)
        if not missing:
            return _plain(self._head + self._tail)
        limit = 2 * self._half
        note = f"\n[{missing} characters left out: the limit is {limit}]\n"
        return _plain(self._head) + note + _plain(self._tail)


def _plain(text: str) -> str:
    return _OVERWRITTEN.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))
