"""Messages, `POST /v1/messages` and `/v1/messages/count_tokens`: the events of a stream, and their
sum."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.engine.events import FinishEvent, PrefillEvent
from gptoss_mlx.errors import ContextError
from gptoss_mlx.server.anthropic.blocks import ContentBlocks
from gptoss_mlx.server.anthropic.catalog import model_for
from gptoss_mlx.server.anthropic.messages_request import MessagesRequest, PromptFields, Style
from gptoss_mlx.server.anthropic.shape import envelope, too_long
from gptoss_mlx.server.anthropic.wire import (
    AnyDelta,
    ContentBlock,
    MessageEnd,
    MessageShown,
    MessageStart,
    StopReason,
    StreamEvent,
    TokenUsage,
)
from gptoss_mlx.server.blocked import Blocked
from gptoss_mlx.server.bodies import read_body
from gptoss_mlx.server.job import Ask, Held, Job, Piece
from gptoss_mlx.server.problems import problem_of
from gptoss_mlx.server.replies import FrameStream, event, reply
from gptoss_mlx.server.service import Service, service_of
from gptoss_mlx.server.written import Written


class TokenCount(TypedDict):
    input_tokens: int


async def create(request: Request) -> Response:
    """The endpoint of messages."""
    body = await read_body(request, MessagesRequest)
    service = service_of(request)
    ask, style = body.ask(model_for(service.registry, body.model), service.written)
    try:
        job = await service.start(ask)
    except ContextError as error:
        raise too_long(error, await _tokens(service, ask)) from None
    told = events(job, style, service.written)
    if body.stream:
        sent = frames(told, request.state.request_id)
        return FrameStream(sent, service.policy, beat=lambda: event({"type": "ping"}, "ping"))
    return await reply(request, collect(told))


async def count(request: Request) -> Response:
    """The endpoint of token counts."""
    body = await read_body(request, PromptFields)
    service = service_of(request)
    ask, _ = body.ask(model_for(service.registry, body.model), service.written)
    return await reply(request, _counted(service.count(ask)))


async def _tokens(service: Service, ask: Ask) -> int | None:
    """Of a prompt that the context does not hold; None if no context would."""
    with suppress(ContextError):
        return await service.count(ask)
    return None


async def _counted(tokens: Awaitable[int]) -> TokenCount:
    try:
        return {"input_tokens": await tokens}
    except ContextError as error:
        raise too_long(error) from None


async def events(job: Job, style: Style, written: Written) -> AsyncGenerator[StreamEvent, None]:
    """The events of an answer. Closes the job at the end."""
    blocks, begun = ContentBlocks(style, job.key, written), False
    try:
        async for _, piece in job.pieces():
            if not begun and not isinstance(piece, Held):
                begun = True
                yield _start(job, style.model or job.model, piece)
                yield {"type": "ping"}
            if isinstance(piece, Delta):
                for block in blocks.write(piece):
                    yield block
            elif isinstance(piece, Blocked):
                yield _refused(job, piece)
                yield {"type": "message_stop"}
            elif isinstance(piece, FinishEvent):
                for block in blocks.finish():
                    yield block
                yield _end(job, piece)
                yield {"type": "message_stop"}
    finally:
        job.close()


async def frames(
    told: AsyncGenerator[StreamEvent, None], request_id: str
) -> AsyncGenerator[bytes, None]:
    """The events as server-sent ones; an error is one as well."""
    try:
        async with aclosing(told):
            async for one in told:
                yield event(one, one["type"])
    except Exception as error:  # of any kind: the stream ends with it
        yield event(envelope(problem_of(error), request_id), "error")


async def collect(told: AsyncGenerator[StreamEvent, None]) -> MessageShown:
    """The sum of the events. Raises the error of a job that failed."""
    message: MessageShown | None = None
    inputs: list[str] = []  # the text of an input under way
    async with aclosing(told):
        async for one in told:
            if one["type"] == "message_start":
                message = one["message"]
            assert message is not None, "no event comes before the start"
            if one["type"] == "content_block_start":
                message["content"].append(one["content_block"])
            elif one["type"] == "content_block_delta":
                _add(message["content"][-1], one["delta"], inputs)
            elif one["type"] == "content_block_stop":
                _close(message["content"][-1], inputs)
            elif one["type"] == "message_delta":
                message = {**message, **one["delta"], "usage": one["usage"]}
    assert message is not None, "an answer has an end"
    return message


def _add(block: ContentBlock, delta: AnyDelta, inputs: list[str]) -> None:
    if delta["type"] == "input_json_delta":
        inputs.append(delta["partial_json"])
    elif delta["type"] == "text_delta" and block["type"] == "text":
        block["text"] += delta["text"]
    elif delta["type"] == "thinking_delta" and block["type"] == "thinking":
        block["thinking"] += delta["thinking"]
    elif delta["type"] == "signature_delta" and block["type"] == "thinking":
        block["signature"] = delta["signature"]


def _close(block: ContentBlock, inputs: list[str]) -> None:
    if block["type"] == "tool_use":
        block["input"] = json.loads("".join(inputs))
        inputs.clear()


def _start(job: Job, model: str, piece: Piece) -> MessageStart:
    prompt = piece.total if isinstance(piece, PrefillEvent) else 0
    reused = piece.reused if isinstance(piece, PrefillEvent) else 0
    message: MessageShown = {
        "id": f"msg_{job.key}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(prompt, reused, 0),
    }
    return {"type": "message_start", "message": message}


def _end(job: Job, finish: FinishEvent) -> MessageEnd:
    usage = _usage(finish.prompt_tokens, finish.timings.reused_tokens, finish.completion_tokens)
    usage["output_tokens_details"] = {"thinking_tokens": job.reasoning_tokens[0]}
    reason = _stop_reason(finish)
    stopped_by = finish.stopped_by if reason == "stop_sequence" else None
    return {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": stopped_by},
        "usage": usage,
    }


def _refused(job: Job, blocked: Blocked) -> MessageEnd:
    """Without a block: clients leave such a turn out, and tell of it themselves."""
    end = _end(job, blocked.finish)
    end["delta"]["stop_reason"] = "refusal"
    end["delta"]["stop_details"] = {
        "type": "refusal",
        "category": None,
        "explanation": blocked.explanation,
    }
    end["delta"]["guard"] = blocked.shown
    return end


def _usage(prompt: int, reused: int, output: int) -> TokenUsage:
    return {
        "input_tokens": prompt - reused,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reused,
        "output_tokens": output,
    }


def _stop_reason(finish: FinishEvent) -> StopReason:
    if finish.reason == "tool_calls":
        return "tool_use"
    if finish.reason == "length":
        return "model_context_window_exceeded" if finish.limit == "context" else "max_tokens"
    return "end_turn" if finish.stopped_by is None else "stop_sequence"
