"""Labels of texts that were judged, so that what a conversation brings again costs nothing."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from gptoss_mlx.tools.guard.guard import Label
from gptoss_mlx.tools.guard.verdict import What

MOST_LABELS = 16384
"""Texts that are remembered, by a digest each."""


class Labels:
    """Forgets those asked for longest ago when it is full. judge: the name of what gave a label."""

    def __init__(self, most: int = MOST_LABELS) -> None:
        self._labels: OrderedDict[bytes, Label] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._labels)

    def find(self, judge: str, what: What, text: str) -> Label | None:
        key = _digest(judge, what, text)
        label = self._labels.get(key)
        if label is not None:
            self._labels.move_to_end(key)
        return label

    def keep(self, judge: str, what: What, text: str, label: Label) -> None:
        key = _digest(judge, what, text)
        self._labels[key] = label
        self._labels.move_to_end(key)
        while len(self._labels) > self._most:
            self._labels.popitem(last=False)


def _digest(judge: str, what: What, text: str) -> bytes:
    """Space around a text is none of it: clients take it away."""
    data = "\0".join((judge, what, text.strip()))
    return hashlib.sha256(data.encode("utf-8", "surrogatepass")).digest()
