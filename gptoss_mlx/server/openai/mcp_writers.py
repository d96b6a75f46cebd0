"""MCP writers: the items and events of lists of tools, of calls, and of requests for approval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.openai.call_writers import RunCall
from gptoss_mlx.server.openai.item_writers import ItemPlace
from gptoss_mlx.server.openai.output_items import (
    ItemStatus,
    McpCallItem,
    McpError,
    McpListItem,
    McpRequestItem,
    McpStatus,
    new_id,
)
from gptoss_mlx.server.openai.response_events import ResponseEvent
from gptoss_mlx.server.openai.response_servers import ServerCall, tools_of
from gptoss_mlx.tools.browser.page import Page
from gptoss_mlx.tools.tool import Outcome
from gptoss_mlx.tools.tool_server import Listing


class McpCallWriter(RunCall):
    """approval_request_id: of the request that a person has agreed to."""

    def __init__(
        self, place: ItemPlace, call: ServerCall, approval_request_id: str | None = None
    ) -> None:
        super().__init__(place, call.recipient, new_id("mcp"), False)
        self.call, self.approval_request_id = call, approval_request_id
        self._status: McpStatus = "in_progress"
        self._output: str | None = None
        self._error: McpError | None = None

    @property
    def item(self) -> McpCallItem:
        return {
            "id": self.id,
            "type": "mcp_call",
            "status": self._status,
            "server_label": self.call.server.label,
            "name": self.call.tool.name,
            "arguments": self.arguments,
            "output": self._output,
            "error": self._error,
            "approval_request_id": self.approval_request_id,
        }

    def begin(self) -> Iterator[ResponseEvent]:
        yield self.place.added(self.item)
        yield {**self.place.in_item(self.id), "type": "response.mcp_call.in_progress"}

    def push(self, delta: Delta) -> Iterator[ResponseEvent]:
        yield from self._add(delta.text)

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        yield {
            **self.place.in_item(self.id),
            "type": "response.mcp_call_arguments.done",
            "arguments": self.arguments,
        }
        if status == "incomplete":
            yield from self.abandon()

    def whole(self, arguments: str) -> Iterator[ResponseEvent]:
        """All events of a call that was written before."""
        yield from self.begin()
        yield from self._add(arguments)
        yield from self.end("completed")

    def start(self) -> Iterator[ResponseEvent]:
        self._status = "calling"
        return iter(())

    def finish(
        self, outcome: Outcome, images: Sequence[str], page: Page | None
    ) -> Iterator[ResponseEvent]:
        self._result = outcome.text
        place = self.place.in_item(self.id)
        if outcome.failed:
            content = [{"type": "text", "text": outcome.text}]
            self._error = {"type": "mcp_tool_execution_error", "content": [*content]}
            self._status = "failed"
            yield {**place, "type": "response.mcp_call.failed"}
        else:
            self._output, self._status = outcome.text, "completed"
            yield {**place, "type": "response.mcp_call.completed"}
        yield self.place.done(self.item)

    def stop(self) -> None:
        self._status = "incomplete"

    def _add(self, text: str) -> Iterator[ResponseEvent]:
        if text:
            self._texts.append(text)
            yield {
                **self.place.in_item(self.id),
                "type": "response.mcp_call_arguments.delta",
                "delta": text,
            }


class McpRequestWriter:
    """The request for approval of a call, which begins when the call is written: half a call is no
    question, and becomes a call that was not run."""

    def __init__(self, place: ItemPlace, call: ServerCall) -> None:
        self._place, self._call = place, call
        self._id, self._texts = new_id("mcpr"), list[str]()
        self._cut: McpCallWriter | None = None

    @property
    def item(self) -> McpRequestItem:
        return {
            "id": self._id,
            "type": "mcp_approval_request",
            "server_label": self._call.server.label,
            "name": self._call.tool.name,
            "arguments": "".join(self._texts),
        }

    @property
    def kept(self) -> JSON:
        return cast(JSON, self.item) if self._cut is None else self._cut.kept

    def begin(self) -> Iterator[ResponseEvent]:
        return iter(())

    def push(self, delta: Delta) -> Iterator[ResponseEvent]:
        self._texts.append(delta.text)
        return iter(())

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        if status == "incomplete":
            self._cut = McpCallWriter(self._place, self._call)
            yield from self._cut.whole("".join(self._texts))
            yield from self._cut.abandon()
            return
        yield self._place.added(self.item)
        yield self._place.done(self.item)


def list_events(place: ItemPlace, label: str, listing: Listing) -> Iterator[ResponseEvent]:
    """The events of a server's list; the last one has the item."""
    item: McpListItem = {
        "id": new_id("mcpl"),
        "type": "mcp_list_tools",
        "server_label": label,
        "tools": [],
        "error": None,
    }
    yield place.added(item)
    yield {**place.in_item(item["id"]), "type": "response.mcp_list_tools.in_progress"}
    if listing.error is None:
        yield {**place.in_item(item["id"]), "type": "response.mcp_list_tools.completed"}
    else:
        yield {**place.in_item(item["id"]), "type": "response.mcp_list_tools.failed"}
    yield place.done({**item, "tools": tools_of(listing), "error": listing.error})
