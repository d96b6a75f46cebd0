"""Content blocks of an answer, from the deltas of a job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.server.anthropic.arguments import Arguments
from gptoss_mlx.server.anthropic.messages_request import Style
from gptoss_mlx.server.anthropic.thinking import signed
from gptoss_mlx.server.anthropic.wire import AnyDelta, BlockEvent, ContentBlock
from gptoss_mlx.server.written import Written


class ContentBlocks:
    """Takes the deltas of one answer in order, and gives the events of its blocks.

    A message of the model is a block. An answer has at least one, if only an empty text.
    """

    def __init__(self, style: Style, key: str, written: Written) -> None:
        """key: of the answer, for ids that no other has. written: keeps the arguments of calls."""
        self._style, self._key, self._written = style, key, written
        self._open: _Block | None = None
        self._message = self._call = -1  # numbers of the message under way, and of the first call
        self._begun = 0

    def write(self, delta: Delta) -> Iterator[BlockEvent]:
        if not self._is_told(delta):
            return
        if self._open is None or delta.message != self._message:
            yield from self._close()
            self._message = delta.message
            yield self._begin(self._new(delta))
        assert self._open is not None
        for piece in self._open.push(delta.text):
            yield self._piece(piece)

    def finish(self) -> Iterator[BlockEvent]:
        yield from self._close()
        if not self._begun:
            yield self._begin(_Text())
            yield from self._close()

    def _is_told(self, delta: Delta) -> bool:
        if delta.part == "call":
            if self._call < 0:
                self._call = delta.message
            return not self._style.single or delta.message == self._call
        return delta.part != "reasoning" or self._style.reasoning != "hidden"

    def _new(self, delta: Delta) -> _Block:
        if delta.part == "reasoning":
            return _Thinking(is_shown=self._style.reasoning == "shown")
        if delta.part == "call":
            name = self._style.aliases.original(delta.name)
            return _ToolUse(f"toolu_{self._key}{self._begun:02}", name, self._written)
        return _Text()

    def _begin(self, block: _Block) -> BlockEvent:
        self._open = block
        self._begun += 1
        return {
            "type": "content_block_start",
            "index": self._begun - 1,
            "content_block": block.start(),
        }

    def _piece(self, delta: AnyDelta) -> BlockEvent:
        return {"type": "content_block_delta", "index": self._begun - 1, "delta": delta}

    def _close(self) -> Iterator[BlockEvent]:
        if self._open is not None:
            for piece in self._open.finish():
                yield self._piece(piece)
            yield {"type": "content_block_stop", "index": self._begun - 1}
            self._open = None


class _Block(Protocol):
    """A block under way."""

    def start(self) -> ContentBlock: ...
    def push(self, text: str) -> Iterator[AnyDelta]: ...
    def finish(self) -> Iterator[AnyDelta]: ...


class _Text:
    def start(self) -> ContentBlock:
        return {"type": "text", "text": ""}

    def push(self, text: str) -> Iterator[AnyDelta]:
        yield {"type": "text_delta", "text": text}

    def finish(self) -> Iterator[AnyDelta]:
        return iter(())


class _Thinking:
    def __init__(self, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._omitted: list[str] = []

    def start(self) -> ContentBlock:
        return {"type": "thinking", "thinking": "", "signature": ""}

    def push(self, text: str) -> Iterator[AnyDelta]:
        if self._is_shown:
            yield {"type": "thinking_delta", "thinking": text}
        else:
            self._omitted.append(text)

    def finish(self) -> Iterator[AnyDelta]:
        yield {"type": "signature_delta", "signature": signed("".join(self._omitted))}


class _ToolUse:
    def __init__(self, id: str, name: str, written: Written) -> None:
        self._id, self._name, self._written = id, name, written
        self._arguments = Arguments()

    def start(self) -> ContentBlock:
        return {"type": "tool_use", "id": self._id, "name": self._name, "input": {}}

    def push(self, text: str) -> Iterator[AnyDelta]:
        if whole := self._arguments.push(text):
            yield {"type": "input_json_delta", "partial_json": whole}

    def finish(self) -> Iterator[AnyDelta]:
        self._written.keep(self._id, self._arguments.text)
        yield {"type": "input_json_delta", "partial_json": self._arguments.finish()}
