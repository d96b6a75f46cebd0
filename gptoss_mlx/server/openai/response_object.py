"""The response object: what a response is at a moment, with all fields that strict clients want."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict

from gptoss_mlx.engine.events import FinishEvent, FinishReason
from gptoss_mlx.harmony.tokenizer import Tokenizer
from gptoss_mlx.server.blocked import Blocked, GuardShown
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.openai.output_items import OutputItem
from gptoss_mlx.server.problems import problem_of

ResponseStatus: TypeAlias = Literal["in_progress", "completed", "incomplete", "cancelled", "failed"]


class InputDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """In tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ReasoningEcho(TypedDict):
    effort: str
    summary: str | None


class Repeated(TypedDict):
    """What a response repeats of its request."""

    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: Mapping[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningEcho
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: JSON
    tool_choice: str | JSON
    tools: Sequence[JSON]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    user: str | None


class IncompleteDetails(TypedDict):
    """guard: beside the reason `content_filter`."""

    reason: Literal["max_output_tokens", "content_filter"]
    guard: NotRequired[GuardShown]


class FailureShown(TypedDict):
    code: str
    message: str


class ResponseShown(Repeated):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: ResponseStatus
    error: FailureShown | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None


@dataclass(frozen=True)
class ResponseHead:
    """What a response has from the beginning. model: the name that it goes by. created: seconds
    since 1970."""

    key: str
    model: str
    created: int
    tokenizer: Tokenizer


def begun(id: str, created: int, model: str, echo: Repeated) -> ResponseShown:
    """A response that has no output so far."""
    return {
        **echo,
        "id": id,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
    }


@dataclass(frozen=True)
class TurnEnd:
    """The end of one of the model's turns."""

    finish: FinishEvent
    reasoning_tokens: int


def response_usage(turns: Sequence[TurnEnd]) -> ResponseUsage:
    """The sum over all turns, each of which reads its prompt."""
    finishes = [turn.finish for turn in turns]
    prompt = sum(finish.prompt_tokens for finish in finishes)
    completion = sum(finish.completion_tokens for finish in finishes)
    cached = sum(finish.timings.reused_tokens for finish in finishes)
    return {
        "input_tokens": prompt,
        # Prompts are kept at no cost, so that none is counted as written.
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": sum(t.reasoning_tokens for t in turns)},
        "total_tokens": prompt + completion,
    }


def ended(
    shown: ResponseShown, reason: FinishReason, turns: Sequence[TurnEnd], blocked: Blocked | None
) -> ResponseShown:
    """The response at its end. blocked: how the guard ended it."""
    is_cut = reason in ("length", "cancelled")
    found: ResponseShown = {
        **shown,
        "status": "incomplete" if is_cut or blocked else "completed",
        "service_tier": "default",
        "usage": response_usage(turns),
    }
    if reason == "cancelled":
        found["status"] = "cancelled"
    elif blocked is not None:
        found["incomplete_details"] = {"reason": "content_filter", "guard": blocked.shown}
    elif is_cut:
        found["incomplete_details"] = {"reason": "max_output_tokens"}
    else:
        found["completed_at"] = int(time.time())
    return found


def ended_by(error: Exception, shown: ResponseShown) -> ResponseShown:
    """The response that an error has ended."""
    problem = problem_of(error)
    code = "invalid_prompt" if problem.status == 400 else "server_error"
    return {**shown, "status": "failed", "error": {"code": code, "message": str(problem)}}
