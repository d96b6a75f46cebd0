"""Output items: what a response is made of, as OpenAI's clients read them.

What the model wrote or read otherwise is kept beside an item, under a key that is never given out.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict

from gptoss_mlx.server.logprobs import Chosen
from gptoss_mlx.tools.browser.citations import FileCitation, UrlCitation

ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]
CodeStatus: TypeAlias = Literal["in_progress", "interpreting", "completed", "incomplete", "failed"]
McpStatus: TypeAlias = Literal["in_progress", "calling", "completed", "incomplete", "failed"]
SearchStatus: TypeAlias = Literal["in_progress", "searching", "completed", "failed"]
Phase: TypeAlias = Literal["commentary", "final_answer"]

WRITTEN = "as_written"
"""Key of what the model wrote and read in the place of an item."""


class WrittenCall(TypedDict):
    """A call of one of the server's tools. result: the text that the model read."""

    recipient: str
    arguments: str
    result: str


class WrittenText(TypedDict):
    """A message's text, with marks where that of the item has links."""

    text: str


class ContainerFileCitation(TypedDict):
    """A file that python made; characters of the text that name it, from start up to end."""

    type: Literal["container_file_citation"]
    container_id: str
    file_id: str
    filename: str
    start_index: int
    end_index: int


Annotation: TypeAlias = UrlCitation | FileCitation | ContainerFileCitation


class OutputText(TypedDict):
    type: Literal["output_text"]
    annotations: list[Annotation]
    logprobs: list[Chosen]
    text: str


class Refusal(TypedDict):
    """What stands in place of a text that is blocked."""

    type: Literal["refusal"]
    refusal: str


class ReasoningText(TypedDict):
    type: Literal["reasoning_text"]
    text: str


class SummaryText(TypedDict):
    type: Literal["summary_text"]
    text: str


class ReasoningItem(TypedDict):
    """encrypted_content: the reasoning once more, for clients that send back only this."""

    id: str
    type: Literal["reasoning"]
    summary: list[SummaryText]
    content: list[ReasoningText]
    encrypted_content: NotRequired[str]


class MessageItem(TypedDict):
    """phase: a preamble is "commentary"."""

    id: str
    type: Literal["message"]
    status: ItemStatus
    content: list[OutputText] | list[Refusal]
    role: Literal["assistant"]
    phase: Phase


class FunctionCallItem(TypedDict):
    id: str
    type: Literal["function_call"]
    status: ItemStatus
    arguments: str
    call_id: str
    name: str
    namespace: NotRequired[str]


class CustomCallItem(TypedDict):
    id: str
    type: Literal["custom_tool_call"]
    status: ItemStatus
    call_id: str
    input: str
    name: str
    namespace: NotRequired[str]


class Logs(TypedDict):
    type: Literal["logs"]
    logs: str


class Image(TypedDict):
    type: Literal["image"]
    url: str


class CodeCallItem(TypedDict):
    """encrypted_content: the call and its result, for clients that keep their conversations."""

    id: str
    type: Literal["code_interpreter_call"]
    status: CodeStatus
    code: str
    container_id: str
    outputs: list[Logs | Image] | None
    encrypted_content: NotRequired[str]


class SearchSource(TypedDict):
    type: Literal["url"]
    url: str


class SearchAction(TypedDict):
    type: Literal["search"]
    query: str
    queries: list[str]
    sources: NotRequired[list[SearchSource]]


class OpenAction(TypedDict):
    type: Literal["open_page"]
    url: str | None


class FindAction(TypedDict):
    type: Literal["find_in_page"]
    url: str
    pattern: str


BrowserAction: TypeAlias = SearchAction | OpenAction | FindAction


class SearchCallItem(TypedDict):
    id: str
    type: Literal["web_search_call"]
    status: SearchStatus
    action: BrowserAction
    encrypted_content: NotRequired[str]


class McpToolShown(TypedDict):
    name: str
    description: str | None
    input_schema: Mapping[str, object]
    annotations: Mapping[str, bool] | None


class McpListItem(TypedDict):
    """error: why there are no tools."""

    id: str
    type: Literal["mcp_list_tools"]
    server_label: str
    tools: list[McpToolShown]
    error: str | None


class McpError(TypedDict):
    """content: what the model read."""

    type: Literal["mcp_tool_execution_error"]
    content: list[Mapping[str, str]]


class McpCallItem(TypedDict):
    id: str
    type: Literal["mcp_call"]
    status: McpStatus
    server_label: str
    name: str
    arguments: str
    output: str | None
    error: McpError | None
    approval_request_id: str | None


class McpRequestItem(TypedDict):
    """A call that waits until the client says in another request whether it may run."""

    id: str
    type: Literal["mcp_approval_request"]
    server_label: str
    name: str
    arguments: str


OutputItem: TypeAlias = (
    ReasoningItem
    | MessageItem
    | FunctionCallItem
    | CustomCallItem
    | CodeCallItem
    | SearchCallItem
    | McpListItem
    | McpCallItem
    | McpRequestItem
)


def public(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """An item as clients read it."""
    return {key: value for key, value in item.items() if key != WRITTEN}


def new_id(prefix: str) -> str:
    """An id that no other item has. prefix: of its kind."""
    return f"{prefix}_{secrets.token_hex(16)}"
