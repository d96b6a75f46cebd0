"""The options of a stream, all by name; `Engine.stream` and `Sampling` explain them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypedDict

Message: TypeAlias = Mapping[str, object]
"""A message, a tool or a response format as OpenAI's JSON has it; checked when it is rendered."""

Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling`; None, or leaving one out, takes the checkpoint's default."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    logprobs: bool | None
    top_logprobs: int | None


class Options(SamplingOptions, total=False):
    """The options of `Engine.stream`, `stream_many`, `generate`, `generate_many` and `add`."""

    max_tokens: int | None
    max_time: float | None
    stop_repetition: bool
    raw: bool
    tools: Sequence[Message]
    system: str | None
    reasoning: str
    response_format: Message | None
    tool_choice: str | Message | None
    grammar: str | None
    regex: str | None
    reasoning_budget: int | None
    constrain_headers: bool
    stop: str | Sequence[str] | None
    cancel: Callable[[], bool] | None
