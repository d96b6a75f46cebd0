"""Arguments as a model wrote them, for APIs whose clients send them back as an object.

Rendered anew, an object seldom has the spaces that the model wrote, and the prompt's prefix would
end at the first call.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping

ROOM = 16 << 20
"""Characters that are remembered; the calls used longest ago are forgotten first."""


class Written:
    """Texts of arguments, by the ids of their calls. Used in one event loop."""

    def __init__(self, room: int = ROOM) -> None:
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._room = room

    def keep(self, id: str, text: str) -> None:
        self._texts[id] = text
        self._room -= len(text)
        while self._room < 0:
            _, forgotten = self._texts.popitem(last=False)
            self._room += len(forgotten)

    def find(self, id: object, value: Mapping[str, object]) -> str | None:
        """The text of a call's arguments, if they still are this value."""
        if not isinstance(id, str) or id not in self._texts or not _means(self._texts[id], value):
            return None
        self._texts.move_to_end(id)
        return self._texts[id]


def _means(text: str, value: Mapping[str, object]) -> bool:
    try:
        return bool(json.loads(text) == value)
    except (ValueError, RecursionError):
        return False
