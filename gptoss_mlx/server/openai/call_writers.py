"""Call writers: each makes the item of a call that the server runs, and the events that tell of it.

The item begins while the model writes the call, and ends when the call has been run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.openai.browser_actions import begun_action, ended_action
from gptoss_mlx.server.openai.item_writers import ItemPlace
from gptoss_mlx.server.openai.output_items import (
    WRITTEN,
    CodeCallItem,
    CodeStatus,
    Image,
    ItemStatus,
    Logs,
    McpCallItem,
    SearchCallItem,
    SearchStatus,
    WrittenCall,
    new_id,
)
from gptoss_mlx.server.openai.response_events import ResponseEvent
from gptoss_mlx.server.openai.sealed_calls import seal_call
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.page import Page
from gptoss_mlx.tools.tool import Outcome

INTERRUPTED = "The call was interrupted."
"""What the model reads of a call that gave nothing."""


class CallWriter(Protocol):
    """An item writer that goes on after the model has written the call.

    recipient, arguments: of the call as the model wrote it. kept: the item with what only the model
    reads.
    """

    recipient: str

    @property
    def id(self) -> str: ...

    @property
    def place(self) -> ItemPlace: ...

    @property
    def arguments(self) -> str: ...

    @property
    def item(self) -> CodeCallItem | SearchCallItem | McpCallItem: ...

    @property
    def kept(self) -> JSON: ...

    def begin(self) -> Iterator[ResponseEvent]: ...

    def push(self, delta: Delta) -> Iterator[ResponseEvent]: ...

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """The call is written; it is over as well if it was cut short."""
        ...

    def start(self) -> Iterator[ResponseEvent]:
        """The call begins to run."""
        ...

    def finish(
        self, outcome: Outcome, images: Sequence[str], page: Page | None
    ) -> Iterator[ResponseEvent]:
        """The call has given something. images: URLs of pictures; page: what the browser shows."""
        ...

    def stop(self) -> None:
        """The call is not run, or not to its end."""
        ...

    def abandon(self) -> Iterator[ResponseEvent]:
        """Stop, and tell of it."""
        ...


class RunCall:
    """What the writers of calls have in common. sealed: whether the item is to hold all of it."""

    def __init__(self, place: ItemPlace, recipient: str, id: str, sealed: bool) -> None:
        self.place, self.recipient, self.id, self._sealed = place, recipient, id, sealed
        self._texts, self._result = list[str](), INTERRUPTED

    @property
    def item(self) -> CodeCallItem | SearchCallItem | McpCallItem:
        raise NotImplementedError

    @property
    def kept(self) -> JSON:
        return {**self.item, WRITTEN: self.written}

    def stop(self) -> None:
        raise NotImplementedError

    def abandon(self) -> Iterator[ResponseEvent]:
        self.stop()
        yield self.place.done(self.item)

    @property
    def arguments(self) -> str:
        return "".join(self._texts)

    @property
    def written(self) -> WrittenCall:
        return {
            "recipient": self.recipient,
            "arguments": self.arguments,
            "result": self._result,
        }


class CodeCallWriter(RunCall):
    """with_outputs: whether the item says what the code gave."""

    def __init__(
        self, place: ItemPlace, container_id: str, with_outputs: bool, sealed: bool
    ) -> None:
        super().__init__(place, "python", new_id("ci"), sealed)
        self._container_id, self._with_outputs = container_id, with_outputs
        self._status: CodeStatus = "in_progress"
        self._images: Sequence[str] = ()
        self._has_run = False

    @property
    def item(self) -> CodeCallItem:
        item: CodeCallItem = {
            "id": self.id,
            "type": "code_interpreter_call",
            "status": self._status,
            "code": self.arguments,
            "container_id": self._container_id,
            "outputs": self._outputs() if self._with_outputs and self._has_run else None,
        }
        if self._sealed and self._status not in ("in_progress", "interpreting"):
            item["encrypted_content"] = seal_call(self.written)
        return item

    def begin(self) -> Iterator[ResponseEvent]:
        yield self.place.added(self.item)
        yield {
            **self.place.in_item(self.id),
            "type": "response.code_interpreter_call.in_progress",
        }

    def push(self, delta: Delta) -> Iterator[ResponseEvent]:
        if delta.text:
            self._texts.append(delta.text)
            yield {
                **self.place.in_item(self.id),
                "type": "response.code_interpreter_call_code.delta",
                "delta": delta.text,
            }

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        yield {
            **self.place.in_item(self.id),
            "type": "response.code_interpreter_call_code.done",
            "code": self.arguments,
        }
        if status == "incomplete":
            yield from self.abandon()

    def start(self) -> Iterator[ResponseEvent]:
        self._status = "interpreting"
        yield {
            **self.place.in_item(self.id),
            "type": "response.code_interpreter_call.interpreting",
        }

    def finish(
        self, outcome: Outcome, images: Sequence[str], page: Page | None
    ) -> Iterator[ResponseEvent]:
        self._result, self._images, self._has_run = outcome.text, images, True
        if self._status == "interpreting":
            yield {
                **self.place.in_item(self.id),
                "type": "response.code_interpreter_call.completed",
            }
        self._status = "failed" if outcome.failed else "completed"
        yield self.place.done(self.item)

    def stop(self) -> None:
        self._status = "incomplete"

    def _outputs(self) -> list[Logs | Image]:
        logs: Logs = {"type": "logs", "logs": self._result}
        return [logs, *(Image(type="image", url=url) for url in self._images)]


class SearchCallWriter(RunCall):
    """The item begins when the call is written: what is searched or opened is not known before.

    browser: whose pages the call means. with_sources: whether the item names what a search found.
    """

    def __init__(
        self,
        place: ItemPlace,
        recipient: str,
        browser: BrowserTool,
        with_sources: bool,
        sealed: bool,
    ) -> None:
        super().__init__(place, recipient, new_id("ws"), sealed)
        self._browser, self._with_sources = browser, with_sources
        self._status: SearchStatus = "in_progress"
        self._action = begun_action(recipient, "", browser)

    @property
    def item(self) -> SearchCallItem:
        item: SearchCallItem = {
            "id": self.id,
            "type": "web_search_call",
            "status": self._status,
            "action": self._action,
        }
        if self._sealed and self._status not in ("in_progress", "searching"):
            item["encrypted_content"] = seal_call(self.written)
        return item

    def begin(self) -> Iterator[ResponseEvent]:
        return iter(())

    def push(self, delta: Delta) -> Iterator[ResponseEvent]:
        self._texts.append(delta.text)
        return iter(())

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        self._action = begun_action(self.recipient, self.arguments, self._browser)
        yield self.place.added(self.item)
        yield {**self.place.in_item(self.id), "type": "response.web_search_call.in_progress"}
        if status == "incomplete":
            yield from self.abandon()

    def start(self) -> Iterator[ResponseEvent]:
        self._status = "searching"
        yield {**self.place.in_item(self.id), "type": "response.web_search_call.searching"}

    def finish(
        self, outcome: Outcome, images: Sequence[str], page: Page | None
    ) -> Iterator[ResponseEvent]:
        self._result = outcome.text
        if self._status == "searching":
            yield {**self.place.in_item(self.id), "type": "response.web_search_call.completed"}
        self._status = "failed" if outcome.failed else "completed"
        if page is not None and not outcome.failed:
            self._action = ended_action(self._action, page, self._with_sources)
        yield self.place.done(self.item)

    def stop(self) -> None:
        self._status = "failed"
