"""The answer to one request of Ollama's API, part by part, and its counts."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.engine.events import FinishEvent
from gptoss_mlx.engine.result import new_call_id
from gptoss_mlx.harmony.schema import clean
from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.blocked import Blocked, GuardShown
from gptoss_mlx.server.job import Job, Progress
from gptoss_mlx.server.logprobs import Chosen, logprobs_of
from gptoss_mlx.server.ollama.shape import NDJSON, SECOND, failed, line
from gptoss_mlx.server.replies import FrameStream, reply
from gptoss_mlx.server.service import service_of

DoneReason = Literal["stop", "length", "load", "unload", "content_filter"]


class CalledFunction(TypedDict):
    index: int
    name: str
    arguments: dict[str, Any]


class CompleteCall(TypedDict):
    id: str
    function: CalledFunction


class LineHead(TypedDict):
    """What every line has."""

    model: str
    created_at: str
    done: bool


class Tally(TypedDict):
    """What the last line has beside it: nanoseconds, and tokens. guard: beside the reason
    `content_filter`."""

    done_reason: NotRequired[DoneReason]
    total_duration: NotRequired[int]
    load_duration: NotRequired[int]
    prompt_eval_count: NotRequired[int]
    prompt_eval_duration: NotRequired[int]
    eval_count: NotRequired[int]
    eval_duration: NotRequired[int]
    guard: NotRequired[GuardShown]


@dataclass(frozen=True)
class Fragment:
    """A piece of an answer, or all of it."""

    content: str = ""
    thinking: str = ""
    calls: tuple[CompleteCall, ...] = ()
    logprobs: tuple[Chosen, ...] = ()


WriteLine: TypeAlias = Callable[[str, Fragment, Tally | None], object]
"""Writes a part of a model's answer as a line; with counts as the last one."""


class Stopwatch:
    """Nanoseconds of one request, from when it is made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter_ns()
        self.load = 0

    @property
    def total(self) -> int:
        return time.perf_counter_ns() - self._begun

    def loaded(self) -> None:
        """Note that the model has the request."""
        self.load = self.total


class OllamaAnswer:
    """The parts of one answer. `parts` can be read once; then there are `counts`.

    model: the name that it was asked by.
    """

    def __init__(
        self, job: Job, aliases: Aliases, model: str | None, watch: Stopwatch, logprobs: bool
    ) -> None:
        self._job, self._watch, self._logprobs = job, watch, logprobs
        self.model = model or job.model
        self._calls = _Calls(aliases)
        self._text: int | None = None  # the message whose text was given last
        self._finish: FinishEvent | None = None
        self._blocked: Blocked | None = None

    async def parts(self) -> AsyncGenerator[Fragment, None]:
        """Closes the job at the end."""
        try:
            async for _, piece in self._job.pieces():
                if isinstance(piece, Progress):
                    continue
                if isinstance(piece, Blocked):  # without a field of its own the line is content
                    self._finish, self._blocked = piece.finish, piece
                    yield Fragment(content=piece.line)
                    continue
                if isinstance(piece, FinishEvent):
                    self._finish = piece
                for part in self._calls.push(piece):
                    yield part
                if isinstance(piece, Delta) and piece.part != "call":
                    yield self._said(piece)
        finally:
            self._job.close()

    async def whole(self) -> Fragment:
        """All parts in one. Raises the error of a choice that failed."""
        async with aclosing(self.parts()) as parts:
            return joined([part async for part in parts])

    def counts(self) -> Tally:
        assert self._finish is not None, "the answer has not been read"
        finish, timings = self._finish, self._finish.timings
        counts: Tally = {
            "done_reason": "length" if finish.reason == "length" else "stop",
            "total_duration": self._watch.total,
            "load_duration": self._watch.load,
            "prompt_eval_count": finish.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(timings.prefill),
            "eval_count": finish.completion_tokens,
            "eval_duration": _nanoseconds(timings.decode),
        }
        if self._blocked is not None:
            counts |= {"done_reason": "content_filter", "guard": self._blocked.shown}
        return counts

    def _said(self, delta: Delta) -> Fragment:
        if delta.part == "reasoning":
            return Fragment(thinking=delta.text)
        parted = self._text not in (None, delta.message)
        self._text = delta.message
        probable: Sequence[Chosen] = ()
        if self._logprobs:
            probable = logprobs_of(delta.tokens, self._job.tokenizer)["content"]
        text = "\n\n" + delta.text if parted else delta.text
        return Fragment(content=text, logprobs=tuple(probable))


class _Calls:
    """Gathers calls, which go out whole. One that is cut off in the middle is given as text: half
    of its arguments would be others."""

    def __init__(self, aliases: Aliases) -> None:
        self._aliases = aliases
        self._open: Delta | None = None
        self._texts: list[str] = []
        self._made = 0

    def push(self, piece: Delta | FinishEvent) -> Iterator[Fragment]:
        """The call that this piece ends, if it does."""
        message = piece.message if isinstance(piece, Delta) else None
        if self._open is not None and self._open.message != message:
            yield self._part(self._open.name, "".join(self._texts))
            self._open, self._texts = None, []
        if isinstance(piece, Delta) and piece.part == "call":
            self._open = piece
            self._texts.append(piece.text)

    def _part(self, name: str, text: str) -> Fragment:
        arguments = _object(text)
        if arguments is None:
            return Fragment(content=text)
        function: CalledFunction = {
            "index": self._made,
            "name": self._aliases.original(name),
            "arguments": arguments,
        }
        self._made += 1
        return Fragment(calls=({"id": new_call_id(), "function": function},))


async def replied(
    request: Request, answer: OllamaAnswer, streams: bool, write: WriteLine
) -> Response:
    """The answer in a client's lines, or in one."""
    if not streams:
        return await reply(request, _collect(answer, write))
    # Clients pass over an empty part; lines of JSON have no comments.
    return FrameStream(
        _frames(answer, write),
        service_of(request).policy,
        NDJSON,
        beat=lambda: line(write(answer.model, Fragment(), None)),
    )


async def _frames(answer: OllamaAnswer, write: WriteLine) -> AsyncGenerator[bytes, None]:
    """The lines; an error is one as well."""
    try:
        async with aclosing(answer.parts()) as parts:
            async for part in parts:
                yield line(write(answer.model, part, None))
        yield line(write(answer.model, Fragment(), answer.counts()))
    except Exception as error:  # of any kind: the stream ends with it
        yield failed(error)


async def _collect(answer: OllamaAnswer, write: WriteLine) -> object:
    """Raises the error of an answer that failed."""
    return write(answer.model, await answer.whole(), answer.counts())


def joined(parts: Sequence[Fragment]) -> Fragment:
    return Fragment(
        content="".join(part.content for part in parts),
        thinking="".join(part.thinking for part in parts),
        calls=tuple(call for part in parts for call in part.calls),
        logprobs=tuple(token for part in parts for token in part.logprobs),
    )


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return clean(value) if isinstance(value, Mapping) else None


def _nanoseconds(seconds: float) -> int:
    """At least one, since clients divide by it."""
    return max(1, round(seconds * SECOND))
