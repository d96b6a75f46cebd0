"""Item writers: each makes an output item of a message's deltas, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.engine.result import new_call_id
from gptoss_mlx.harmony.tokenizer import Tokenizer
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.logprobs import Chosen, chosen
from gptoss_mlx.server.openai.annotator import Annotated, Annotator
from gptoss_mlx.server.openai.free_text import InputDecoder
from gptoss_mlx.server.openai.output_items import (
    WRITTEN,
    Annotation,
    CustomCallItem,
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    Phase,
    ReasoningItem,
    ReasoningText,
    SummaryText,
    WrittenText,
    new_id,
)
from gptoss_mlx.server.openai.response_events import (
    InItem,
    InPart,
    InSummary,
    ItemEvent,
    ResponseEvent,
)
from gptoss_mlx.server.openai.response_tools import NamedTool
from gptoss_mlx.server.openai.sealed_reasoning import seal


class ItemWriter(Protocol):
    """item: as it is so far. kept: when it has ended, with what only the model reads."""

    @property
    def item(self) -> OutputItem: ...

    @property
    def kept(self) -> JSON: ...

    def begin(self) -> Iterator[ResponseEvent]: ...

    def push(self, delta: Delta) -> Iterator[ResponseEvent]: ...

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]: ...


@dataclass(frozen=True)
class ItemPlace:
    """Where an item is. index: in the output. number: gives the next event's number."""

    index: int
    number: Callable[[], int]

    def added(self, item: OutputItem) -> ItemEvent:
        return {
            "type": "response.output_item.added",
            "sequence_number": self.number(),
            "output_index": self.index,
            "item": item,
        }

    def done(self, item: OutputItem) -> ItemEvent:
        return {**self.added(item), "type": "response.output_item.done"}

    def in_item(self, id: str) -> InItem:
        return {"sequence_number": self.number(), "item_id": id, "output_index": self.index}

    def in_part(self, id: str) -> InPart:
        return {**self.in_item(id), "content_index": 0}

    def in_summary(self, id: str) -> InSummary:
        return {**self.in_item(id), "summary_index": 0}


class _Whole:
    """A writer whose item is all that there is."""

    _ended: OutputItem

    @property
    def kept(self) -> JSON:
        return cast(JSON, self._ended)


class ReasoningWriter(_Whole):
    """with_summary: give the text as its own summary as well. sealed: and as encrypted_content."""

    def __init__(self, place: ItemPlace, with_summary: bool, sealed: bool) -> None:
        self._place, self._with_summary, self._sealed = place, with_summary, sealed
        self._id, self._texts = new_id("rs"), list[str]()

    @property
    def item(self) -> ReasoningItem:
        text = "".join(self._texts)
        summary: list[SummaryText] = [{"type": "summary_text", "text": text}]
        item: ReasoningItem = {
            "id": self._id,
            "type": "reasoning",
            "summary": summary if self._with_summary else [],
            "content": [{"type": "reasoning_text", "text": text}],
        }
        if self._sealed:
            item["encrypted_content"] = seal(text)
        return item

    def begin(self) -> Iterator[ResponseEvent]:
        place, id = self._place, self._id
        empty: ReasoningText = {"type": "reasoning_text", "text": ""}
        yield place.added({"id": id, "type": "reasoning", "summary": [], "content": []})
        yield {**place.in_part(id), "type": "response.content_part.added", "part": empty}
        if self._with_summary:
            yield {
                **place.in_summary(id),
                "type": "response.reasoning_summary_part.added",
                "part": {"type": "summary_text", "text": ""},
            }

    def push(self, delta: Delta) -> Iterator[ResponseEvent]:
        place, id, text = self._place, self._id, delta.text
        self._texts.append(text)
        yield {**place.in_part(id), "type": "response.reasoning_text.delta", "delta": text}
        if self._with_summary:
            yield {
                **place.in_summary(id),
                "type": "response.reasoning_summary_text.delta",
                "delta": text,
            }

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        place, id, item = self._place, self._id, self.item
        part = item["content"][0]
        yield {**place.in_part(id), "type": "response.reasoning_text.done", "text": part["text"]}
        yield {**place.in_part(id), "type": "response.content_part.done", "part": part}
        for summary in item["summary"]:
            yield {
                **place.in_summary(id),
                "type": "response.reasoning_summary_text.done",
                "text": summary["text"],
            }
            yield {
                **place.in_summary(id),
                "type": "response.reasoning_summary_part.done",
                "part": summary,
            }
        self._ended = item
        yield place.done(item)


class MessageWriter:
    """tokenizer: of the log-probabilities; None where none are wanted. annotator: of what the text
    cites."""

    def __init__(
        self,
        place: ItemPlace,
        phase: Phase,
        tokenizer: Tokenizer | None,
        annotator: Annotator | None = None,
    ) -> None:
        self._place, self._tokenizer, self._phase = place, tokenizer, phase
        self._annotator = annotator or Annotator(None)
        self._id, self._texts, self._logprobs = new_id("msg"), list[str](), list[Chosen]()
        self._held, self._annotations = list[Chosen](), list[Annotation]()
        self._written = list[str]()

    @property
    def item(self) -> MessageItem:
        return self._item("incomplete", [self._part()])

    def begin(self) -> Iterator[ResponseEvent]:
        place, id = self._place, self._id
        yield place.added(self._item("in_progress", []))
        yield {**place.in_part(id), "type": "response.content_part.added", "part": self._part()}

    @property
    def kept(self) -> JSON:
        written = "".join(self._written)
        if written == "".join(self._texts):
            return cast(JSON, self._ended)
        return {**self._ended, WRITTEN: WrittenText(text=written)}

    def push(self, delta: Delta) -> Iterator[ResponseEvent]:
        tokens = () if self._tokenizer is None else delta.tokens
        self._held += [chosen(token, self._tokenizer) for token in tokens if self._tokenizer]
        self._written.append(delta.text)
        yield from self._give(self._annotator.push(delta.text))

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        yield from self._give(self._annotator.end())
        place, id, part = self._place, self._id, self._part()
        yield {
            **place.in_part(id),
            "type": "response.output_text.done",
            "text": part["text"],
            "logprobs": part["logprobs"],
        }
        yield {**place.in_part(id), "type": "response.content_part.done", "part": part}
        self._ended = self._item(status, [part])
        yield place.done(self._ended)

    def _give(self, piece: Annotated) -> Iterator[ResponseEvent]:
        """A piece of the text; the log-probabilities of one held back come with the next."""
        place, id = self._place, self._id
        if piece.text:
            logprobs, self._held = self._held, []
            self._texts.append(piece.text)
            self._logprobs += logprobs
            yield {
                **place.in_part(id),
                "type": "response.output_text.delta",
                "delta": piece.text,
                "logprobs": logprobs,
            }
        for annotation in piece.annotations:
            self._annotations.append(annotation)
            yield {
                **place.in_part(id),
                "type": "response.output_text.annotation.added",
                "annotation_index": len(self._annotations) - 1,
                "annotation": annotation,
            }

    def _part(self) -> OutputText:
        return {
            "type": "output_text",
            "annotations": list(self._annotations),
            "logprobs": list(self._logprobs),
            "text": "".join(self._texts),
        }

    def _item(self, status: ItemStatus, content: list[OutputText]) -> MessageItem:
        return {
            "id": self._id,
            "type": "message",
            "status": status,
            "content": content,
            "role": "assistant",
            "phase": self._phase,
        }


class FunctionCallWriter(_Whole):
    def __init__(self, place: ItemPlace, tool: NamedTool) -> None:
        self._place, self._tool = place, tool
        self._id, self._call_id, self._texts = new_id("fc"), new_call_id(), list[str]()

    @property
    def item(self) -> FunctionCallItem:
        return self._item("incomplete")

    def begin(self) -> Iterator[ResponseEvent]:
        yield self._place.added(self._item("in_progress"))

    def push(self, delta: Delta) -> Iterator[ResponseEvent]:
        if delta.text:
            self._texts.append(delta.text)
            yield {
                **self._place.in_item(self._id),
                "type": "response.function_call_arguments.delta",
                "delta": delta.text,
            }

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        item = self._item(status)
        yield {
            **self._place.in_item(self._id),
            "type": "response.function_call_arguments.done",
            "name": item["name"],
            "arguments": item["arguments"],
        }
        self._ended = item
        yield self._place.done(item)

    def _item(self, status: ItemStatus) -> FunctionCallItem:
        item: FunctionCallItem = {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "arguments": "".join(self._texts),
            "call_id": self._call_id,
            "name": self._tool.name,
        }
        if self._tool.namespace is not None:
            item["namespace"] = self._tool.namespace
        return item


class CustomCallWriter(_Whole):
    def __init__(self, place: ItemPlace, tool: NamedTool) -> None:
        self._place, self._tool, self._decoder = place, tool, InputDecoder()
        self._id, self._call_id, self._texts = new_id("ctc"), new_call_id(), list[str]()

    @property
    def item(self) -> CustomCallItem:
        return self._item("incomplete")

    def begin(self) -> Iterator[ResponseEvent]:
        yield self._place.added(self._item("in_progress"))

    def push(self, delta: Delta) -> Iterator[ResponseEvent]:
        return self._given(self._decoder.push(delta.text))

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        yield from self._given(self._decoder.end())
        item = self._item(status)
        yield {
            **self._place.in_item(self._id),
            "type": "response.custom_tool_call_input.done",
            "input": item["input"],
        }
        self._ended = item
        yield self._place.done(item)

    def _given(self, text: str) -> Iterator[ResponseEvent]:
        if text:
            self._texts.append(text)
            yield {
                **self._place.in_item(self._id),
                "type": "response.custom_tool_call_input.delta",
                "delta": text,
            }

    def _item(self, status: ItemStatus) -> CustomCallItem:
        item: CustomCallItem = {
            "id": self._id,
            "type": "custom_tool_call",
            "status": status,
            "call_id": self._call_id,
            "input": "".join(self._texts),
            "name": self._tool.name,
        }
        if self._tool.namespace is not None:
            item["namespace"] = self._tool.namespace
        return item
