"""Chat completions, `POST /v1/chat/completions`: the chunks of a stream, and their sum."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Literal, NotRequired

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx import __version__
from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.engine.events import FinishEvent
from gptoss_mlx.engine.result import new_call_id
from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.blocked import Blocked, GuardShown
from gptoss_mlx.server.bodies import read_body
from gptoss_mlx.server.job import Job, Progress
from gptoss_mlx.server.logprobs import Logprobs, logprobs_of
from gptoss_mlx.server.openai.chat_request import ChatRequest
from gptoss_mlx.server.openai.stream import frames
from gptoss_mlx.server.openai.usage import TimesShown, Usage, times_of, usage_of
from gptoss_mlx.server.replies import FrameStream, reply
from gptoss_mlx.server.service import service_of

FINGERPRINT = f"fp_gptoss_mlx_{__version__}"

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class CallDelta(TypedDict):
    """A piece of a call; id, type and name only in its first one."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class MessageDelta(TypedDict, total=False):
    """A piece of a message. Reasoning goes out under both names that clients read."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning: str
    reasoning_content: str
    tool_calls: list[CallDelta]


class ChoiceDelta(TypedDict):
    """guard: beside the finish reason `content_filter`."""

    index: int
    delta: MessageDelta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    guard: NotRequired[GuardShown]


class Chunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChoiceDelta]
    usage: NotRequired[Usage | None]
    timings: NotRequired[TimesShown]


class FunctionCalled(TypedDict):
    name: str
    arguments: str


class Call(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCalled


class Message(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class CompletionChoice(TypedDict):
    index: int
    message: Message
    logprobs: Logprobs | None
    finish_reason: FinishReason
    guard: NotRequired[GuardShown]


class Completion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
    timings: TimesShown


async def create(request: Request) -> Response:
    """The endpoint."""
    body = await read_body(request, ChatRequest)
    service = service_of(request)
    ask, aliases = body.ask()
    job = await service.start(ask)
    answer = Answer(job, aliases, logprobs=bool(body.logprobs))
    if body.stream:
        return FrameStream(frames(answer, body.wants_usage), service.policy)
    return await reply(request, collect(answer))


class Answer:
    """The chunks of one request's choices. `chunks` can be read once."""

    def __init__(self, job: Job, aliases: Aliases, logprobs: bool) -> None:
        self._job, self._logprobs = job, logprobs
        self._choices = [_ChoiceState(aliases) for _ in range(job.choices)]
        self.finishes: list[FinishEvent] = []
        self.is_blocked = False  # the choice that ended first

    async def chunks(self) -> AsyncGenerator[Chunk | Progress, None]:
        """The chunks; progress goes with them. Closes the job at the end."""
        try:
            for i in range(len(self._choices)):
                yield self._chunk(i, {"role": "assistant", "content": "", "refusal": None})
            async for i, piece in self._job.pieces():
                if isinstance(piece, Progress):
                    yield piece
                elif isinstance(piece, Blocked):
                    self.is_blocked |= not self.finishes
                    self.finishes.append(piece.finish)
                    yield self._chunk(i, {"refusal": piece.line})
                    yield self._blocked(i, piece)
                elif isinstance(piece, FinishEvent):
                    self.finishes.append(piece)
                    yield self._chunk(i, {}, finish=_finish_reason(piece))
                else:
                    yield self._chunk(i, self._choices[i].delta(piece), self._logprobs_of(piece))
        finally:
            self._job.close()

    def usage(self) -> Usage:
        return usage_of(self.finishes, sum(self._job.reasoning_tokens))

    def last_chunk(self) -> Chunk:
        """The one with the counts, after all others."""
        times = times_of(self.finishes[0].timings)
        return {**self._head(), "choices": [], "usage": self.usage(), "timings": times}

    def completion(self, choices: list[CompletionChoice]) -> Completion:
        head = self._head()
        return {
            "id": head["id"],
            "object": "chat.completion",
            "created": head["created"],
            "model": head["model"],
            "system_fingerprint": head["system_fingerprint"],
            "choices": choices,
            "usage": self.usage(),
            "timings": times_of(self.finishes[0].timings),
        }

    def _head(self) -> Chunk:
        job = self._job
        return {
            "id": f"chatcmpl-{job.key}",
            "object": "chat.completion.chunk",
            "created": job.created,
            "model": job.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [],
        }

    def _chunk(
        self,
        index: int,
        delta: MessageDelta,
        logprobs: Logprobs | None = None,
        finish: FinishReason | None = None,
    ) -> Chunk:
        choice: ChoiceDelta = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish,
        }
        return {**self._head(), "choices": [choice]}

    def _blocked(self, index: int, piece: Blocked) -> Chunk:
        chunk = self._chunk(index, {}, finish="content_filter")
        chunk["choices"][0]["guard"] = piece.shown
        return chunk

    def _logprobs_of(self, delta: Delta) -> Logprobs | None:
        if not self._logprobs or delta.part not in ("answer", "preamble"):
            return None
        return logprobs_of(delta.tokens, self._job.tokenizer)


class _ChoiceState:
    """What has been said of one choice so far."""

    def __init__(self, aliases: Aliases) -> None:
        self._aliases = aliases
        self._text: int | None = None  # the message whose text was sent last
        self._calls: list[int] = []  # numbers of messages

    def delta(self, delta: Delta) -> MessageDelta:
        if delta.part == "reasoning":
            return {"reasoning": delta.text, "reasoning_content": delta.text}
        if delta.part == "call":
            return {"tool_calls": [self._call(delta)]}
        parted = self._text not in (None, delta.message)
        self._text = delta.message
        return {"content": "\n\n" + delta.text if parted else delta.text}

    def _call(self, delta: Delta) -> CallDelta:
        if delta.message in self._calls:
            index = self._calls.index(delta.message)
            return {"index": index, "function": {"arguments": delta.text}}
        self._calls.append(delta.message)
        name = self._aliases.original(delta.name)
        return {
            "index": len(self._calls) - 1,
            "id": new_call_id(),
            "type": "function",
            "function": {"name": name, "arguments": delta.text},
        }


async def collect(answer: Answer) -> Completion:
    """The sum of the chunks. Raises the error of a choice that failed."""
    deltas: dict[int, list[ChoiceDelta]] = {}
    async with aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            for choice in () if isinstance(chunk, Progress) else chunk["choices"]:
                deltas.setdefault(choice["index"], []).append(choice)
    return answer.completion([_sum(index, parts) for index, parts in sorted(deltas.items())])


def _sum(index: int, parts: list[ChoiceDelta]) -> CompletionChoice:
    said = [part["delta"] for part in parts]
    content = "".join(delta.get("content") or "" for delta in said)
    reasoning = "".join(delta.get("reasoning", "") for delta in said)
    calls = _calls(call for delta in said for call in delta.get("tool_calls", ()))
    refusal = "".join(delta.get("refusal") or "" for delta in said) or None
    message: Message = {
        "role": "assistant",
        "content": content if content or not (calls or refusal) else None,
        "refusal": refusal,
    }
    if reasoning:
        message |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if calls:
        message["tool_calls"] = calls
    choice: CompletionChoice = {
        "index": index,
        "message": message,
        "logprobs": _joined([part["logprobs"] for part in parts]),
        "finish_reason": parts[-1]["finish_reason"] or "stop",
    }
    if "guard" in parts[-1]:
        choice["guard"] = parts[-1]["guard"]
    return choice


def _calls(parts: Iterator[CallDelta]) -> list[Call]:
    calls: list[Call] = []
    arguments: list[list[str]] = []
    for part in parts:
        if part["index"] == len(calls):
            called: FunctionCalled = {"name": part["function"]["name"], "arguments": ""}
            calls.append({"id": part["id"], "type": "function", "function": called})
            arguments.append([])
        arguments[part["index"]].append(part["function"]["arguments"])
    for call, texts in zip(calls, arguments, strict=True):
        call["function"]["arguments"] = "".join(texts)
    return calls


def _joined(parts: list[Logprobs | None]) -> Logprobs | None:
    given = [part for part in parts if part is not None]
    if not given:
        return None
    return {"content": [token for part in given for token in part["content"]], "refusal": None}


def _finish_reason(finish: FinishEvent) -> FinishReason:
    return "stop" if finish.reason == "cancelled" else finish.reason
