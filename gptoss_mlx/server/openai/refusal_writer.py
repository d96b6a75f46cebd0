"""The refusal writer: makes the message that stands in place of an answer that is blocked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.openai.item_writers import ItemPlace
from gptoss_mlx.server.openai.output_items import MessageItem, Refusal, new_id
from gptoss_mlx.server.openai.response_events import ResponseEvent


class RefusalWriter:
    """line: what is said."""

    def __init__(self, place: ItemPlace, line: str) -> None:
        self._place, self._line, self._id = place, line, new_id("msg")

    @property
    def kept(self) -> JSON:
        return cast(JSON, self._item([self._part(self._line)]))

    def write(self) -> Iterator[ResponseEvent]:
        """All of its events."""
        place, id, part = self._place, self._id, self._part(self._line)
        yield place.added({**self._item([]), "status": "in_progress"})
        empty = self._part("")
        yield {**place.in_part(id), "type": "response.content_part.added", "part": empty}
        yield {**place.in_part(id), "type": "response.refusal.delta", "delta": self._line}
        yield {**place.in_part(id), "type": "response.refusal.done", "refusal": self._line}
        yield {**place.in_part(id), "type": "response.content_part.done", "part": part}
        yield place.done(self._item([part]))

    def _part(self, text: str) -> Refusal:
        return {"type": "refusal", "refusal": text}

    def _item(self, content: list[Refusal]) -> MessageItem:
        return {
            "id": self._id,
            "type": "message",
            "status": "incomplete",
            "content": content,
            "role": "assistant",
            "phase": "final_answer",
        }
