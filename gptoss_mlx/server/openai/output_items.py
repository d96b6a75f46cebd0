"""Output items: what a response is made of, as OpenAI's clients read them."""

from __future__ import annotations

import secrets
from typing import Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict

from gptoss_mlx.server.logprobs import Chosen

ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]
Phase: TypeAlias = Literal["commentary", "final_answer"]


class OutputText(TypedDict):
    type: Literal["output_text"]
    annotations: list[object]
    logprobs: list[Chosen]
    text: str


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
    content: list[OutputText]
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


OutputItem: TypeAlias = ReasoningItem | MessageItem | FunctionCallItem | CustomCallItem


def new_id(prefix: str) -> str:
    """An id that no other item has. prefix: of its kind."""
    return f"{prefix}_{secrets.token_hex(16)}"
