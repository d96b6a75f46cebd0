"""The messages and stream events of Anthropic's API, as they go out."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict

from gptoss_mlx.server.blocked import GuardShown

StopReason = Literal[
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "model_context_window_exceeded",
    "refusal",
]


class TextBlock(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingBlock(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, object]


ContentBlock: TypeAlias = TextBlock | ThinkingBlock | ToolUseBlock


class ThinkingTokens(TypedDict):
    thinking_tokens: int


class TokenUsage(TypedDict):
    """In tokens. input_tokens: of the prompt, without those that the cache gave."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: NotRequired[ThinkingTokens]


class RefusalDetails(TypedDict):
    """category: of Anthropic's own, none of which is meant; the policy's is the guard's."""

    type: Literal["refusal"]
    category: None
    explanation: str


class MessageShown(TypedDict):
    """stop_details, guard: beside the stop reason `refusal`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: TokenUsage
    stop_details: NotRequired[RefusalDetails]
    guard: NotRequired[GuardShown]


class MessageStart(TypedDict):
    type: Literal["message_start"]
    message: MessageShown


class Ping(TypedDict):
    type: Literal["ping"]


class BlockStart(TypedDict):
    type: Literal["content_block_start"]
    index: int
    content_block: ContentBlock


class TextDelta(TypedDict):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(TypedDict):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    type: Literal["signature_delta"]
    signature: str


class InputDelta(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


AnyDelta: TypeAlias = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockDelta(TypedDict):
    type: Literal["content_block_delta"]
    index: int
    delta: AnyDelta


class BlockStop(TypedDict):
    type: Literal["content_block_stop"]
    index: int


class Ending(TypedDict):
    stop_reason: StopReason
    stop_sequence: str | None
    stop_details: NotRequired[RefusalDetails]
    guard: NotRequired[GuardShown]


class MessageEnd(TypedDict):
    type: Literal["message_delta"]
    delta: Ending
    usage: TokenUsage


class MessageStop(TypedDict):
    type: Literal["message_stop"]


BlockEvent: TypeAlias = BlockStart | BlockDelta | BlockStop
StreamEvent: TypeAlias = MessageStart | Ping | BlockEvent | MessageEnd | MessageStop
