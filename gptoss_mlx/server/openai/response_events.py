"""The events of a streamed response, by the names of OpenAI's API."""

from __future__ import annotations

from typing import Literal, TypeAlias

from typing_extensions import TypedDict

from gptoss_mlx.server.logprobs import Chosen
from gptoss_mlx.server.openai.output_items import (
    Annotation,
    OutputItem,
    OutputText,
    ReasoningText,
    Refusal,
    SummaryText,
)
from gptoss_mlx.server.openai.response_object import ResponseShown

LifeType: TypeAlias = Literal[
    "response.created",
    "response.in_progress",
    "response.completed",
    "response.incomplete",
    "response.failed",
]


class Numbered(TypedDict):
    sequence_number: int


class LifeEvent(Numbered):
    """The response begins or ends; the last event of a stream is one that ends it."""

    type: LifeType
    response: ResponseShown


class FailureEvent(Numbered):
    """Why the response fails; `response.failed` follows."""

    type: Literal["error"]
    code: str | None
    message: str
    param: str | None


class ItemEvent(Numbered):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class InItem(Numbered):
    item_id: str
    output_index: int


class InPart(InItem):
    content_index: int


class PartEvent(InPart):
    type: Literal["response.content_part.added", "response.content_part.done"]
    part: OutputText | ReasoningText | Refusal


class OutputTextDelta(InPart):
    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[Chosen]


class TextDone(InPart):
    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[Chosen]


class RefusalDelta(InPart):
    type: Literal["response.refusal.delta"]
    delta: str


class RefusalDone(InPart):
    type: Literal["response.refusal.done"]
    refusal: str


class AnnotationAdded(InPart):
    type: Literal["response.output_text.annotation.added"]
    annotation_index: int
    annotation: Annotation


class ReasoningDelta(InPart):
    type: Literal["response.reasoning_text.delta"]
    delta: str


class ReasoningDone(InPart):
    type: Literal["response.reasoning_text.done"]
    text: str


class InSummary(InItem):
    summary_index: int


class SummaryPartEvent(InSummary):
    type: Literal["response.reasoning_summary_part.added", "response.reasoning_summary_part.done"]
    part: SummaryText


class SummaryDelta(InSummary):
    type: Literal["response.reasoning_summary_text.delta"]
    delta: str


class SummaryDone(InSummary):
    type: Literal["response.reasoning_summary_text.done"]
    text: str


class CalledDelta(InItem):
    """A piece of a call's arguments, or of a custom tool's input."""

    type: Literal[
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.mcp_call_arguments.delta",
    ]
    delta: str


class ArgumentsDone(InItem):
    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class InputDone(InItem):
    type: Literal["response.custom_tool_call_input.done"]
    input: str


class CallProgress(InItem):
    """What becomes of a call of one of the server's tools, or of a list of tools."""

    type: Literal[
        "response.code_interpreter_call.in_progress",
        "response.code_interpreter_call.interpreting",
        "response.code_interpreter_call.completed",
        "response.web_search_call.in_progress",
        "response.web_search_call.searching",
        "response.web_search_call.completed",
        "response.mcp_call.in_progress",
        "response.mcp_call.completed",
        "response.mcp_call.failed",
        "response.mcp_list_tools.in_progress",
        "response.mcp_list_tools.completed",
        "response.mcp_list_tools.failed",
    ]


class CodeDelta(InItem):
    type: Literal["response.code_interpreter_call_code.delta"]
    delta: str


class CodeDone(InItem):
    type: Literal["response.code_interpreter_call_code.done"]
    code: str


class McpArgumentsDone(InItem):
    type: Literal["response.mcp_call_arguments.done"]
    arguments: str


class ApprovalRequested(InItem):
    """A call waits for a person's word; only clients that ask for it read this. Not OpenAI's."""

    type: Literal["response.tool_approval.requested"]
    tool: str


ResponseEvent: TypeAlias = (
    LifeEvent
    | FailureEvent
    | ItemEvent
    | PartEvent
    | OutputTextDelta
    | TextDone
    | RefusalDelta
    | RefusalDone
    | AnnotationAdded
    | ReasoningDelta
    | ReasoningDone
    | SummaryPartEvent
    | SummaryDelta
    | SummaryDone
    | CalledDelta
    | ArgumentsDone
    | InputDone
    | CallProgress
    | CodeDelta
    | CodeDone
    | McpArgumentsDone
    | ApprovalRequested
)
