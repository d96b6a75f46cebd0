"""Raw completions, `POST /v1/completions`: texts or token ids that the model continues as they are,
without Harmony."""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Literal, NotRequired, TypeAlias

from pydantic import Field, StrictBool, StrictInt, StrictStr
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.engine.events import FinishEvent, TokenEvent
from gptoss_mlx.engine.options import Options, Prompt
from gptoss_mlx.harmony.tokenizer import Tokenizer
from gptoss_mlx.server.blocked import Blocked, GuardShown
from gptoss_mlx.server.bodies import read_body
from gptoss_mlx.server.job import Ask, Job, Progress
from gptoss_mlx.server.logprobs import LEAST
from gptoss_mlx.server.openai.chat import FINGERPRINT
from gptoss_mlx.server.openai.chat_request import SamplingFields
from gptoss_mlx.server.openai.stream import frames
from gptoss_mlx.server.openai.usage import TimesShown, Usage, times_of, usage_of
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.replies import FrameStream, reply
from gptoss_mlx.server.service import service_of

MOST_PROMPTS = 64
MAX_TOKENS = 16
"""Tokens of an answer, unless asked otherwise; OpenAI's number."""

_NOTHING = "<|endoftext|>"
"""What a request without a prompt has continued."""

Texts = Annotated[list[StrictStr], Field(max_length=MOST_PROMPTS)]
Ids = Annotated[list[list[StrictInt]], Field(max_length=MOST_PROMPTS)]


class TextRequest(SamplingFields):
    """The fields that act; `user` and such change nothing. logprobs: how many alternatives."""

    prompt: StrictStr | Texts | list[StrictInt] | Ids | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    grammar: StrictStr | None = None
    regex: StrictStr | None = None
    echo: StrictBool | None = None
    suffix: StrictStr | None = None
    best_of: StrictInt | None = None

    def ask(self) -> Ask:
        """What is asked of the model. Raises Problem."""
        self._refuse()
        options: Options = {**self.options(), "raw": True}
        options |= {"grammar": self.grammar, "regex": self.regex}
        if self.max_tokens is None:
            options["max_tokens"] = MAX_TOKENS
        if self.logprobs is not None:
            options |= {"logprobs": True, "top_logprobs": self.logprobs}
        first, *further = self._prompts()
        return Ask(self.model, first, options, self.n or 1, further)

    def _prompts(self) -> list[Prompt]:
        given = _NOTHING if self.prompt is None else self.prompt
        if not given:
            raise Problem(400, "the prompt is empty: give it at least one token", param="prompt")
        if isinstance(given, str):
            return [given]
        ids = [item for item in given if isinstance(item, int)]
        return [ids] if ids else [item for item in given if not isinstance(item, int)]

    def _refuse(self) -> None:
        if self.echo:
            raise Problem(400, "echo is not supported: the prompt is the caller's", param="echo")
        if self.suffix:
            said = "suffix: gpt-oss continues a text, and fills nothing in"
            raise Problem(400, said, param="suffix")
        if self.best_of not in (None, self.n or 1):
            said = "best_of must be n: every answer that is written is returned"
            raise Problem(400, said, param="best_of")


class TextLogprobs(TypedDict):
    """text_offset: characters of the answer before each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


TextFinish: TypeAlias = Literal["stop", "length", "content_filter"]


class TextChoice(TypedDict):
    """guard: beside the finish reason `content_filter`."""

    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: TextFinish | None
    guard: NotRequired[GuardShown]


class TextCompletion(TypedDict):
    """An answer, or a chunk of one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: NotRequired[Usage | None]
    timings: NotRequired[TimesShown]


async def create(request: Request) -> Response:
    """The endpoint."""
    body = await read_body(request, TextRequest)
    service = service_of(request)
    answer = TextAnswer(await service.start(body.ask()), body)
    if body.stream:
        return FrameStream(frames(answer, body.wants_usage), service.policy)
    return await reply(request, collect(answer))


class TextAnswer:
    """The chunks of one request's choices. `chunks` can be read once."""

    def __init__(self, job: Job, body: TextRequest) -> None:
        self.job = job
        self._each, top = body.n or 1, body.logprobs
        self._choices = [
            None if top is None else _Probabilities(job.tokenizer, top) for _ in range(job.choices)
        ]
        self._finishes: dict[int, FinishEvent] = {}
        self.is_blocked = False  # the first choice

    @property
    def finishes(self) -> list[FinishEvent]:
        """The ends of the choices, by number."""
        return [finish for _, finish in sorted(self._finishes.items())]

    async def chunks(self) -> AsyncGenerator[TextCompletion | Progress, None]:
        """The chunks; progress goes with them. Closes the job at the end."""
        try:
            async for i, piece in self.job.pieces():
                if isinstance(piece, Progress):
                    yield piece
                elif isinstance(piece, Blocked):
                    self._finishes[i] = piece.finish
                    self.is_blocked |= i == 0
                    choice = _choice(i, finish_reason="content_filter")
                    yield self.completion([{**choice, "guard": piece.shown}])
                elif isinstance(piece, FinishEvent):
                    self._finishes[i] = piece
                    reason: TextFinish = "length" if piece.reason == "length" else "stop"
                    yield self.completion([_choice(i, finish_reason=reason)])
                else:
                    said = self._choices[i]
                    logprobs = None if said is None else said.push(piece)
                    yield self.completion([_choice(i, piece.text, logprobs)])
        finally:
            self.job.close()

    def last_chunk(self) -> TextCompletion:
        return self.counted([])

    def counted(self, choices: list[TextChoice]) -> TextCompletion:
        """Choices, with the counts and times."""
        ends = self.finishes
        usage = usage_of(ends, 0, prompts=len(ends) // self._each)
        return {
            **self.completion(choices),
            "usage": usage,
            "timings": times_of(ends[0].timings),
        }

    def completion(self, choices: list[TextChoice]) -> TextCompletion:
        return {
            "id": f"cmpl-{self.job.key}",
            "object": "text_completion",
            "created": self.job.created,
            "model": self.job.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }


class _Probabilities:
    """The log-probabilities of one choice, piece by piece. top: alternatives of each token."""

    def __init__(self, tokenizer: Tokenizer, top: int) -> None:
        self._tokenizer, self._top, self._length = tokenizer, top, 0

    def push(self, delta: Delta) -> TextLogprobs:
        decoder, at = codecs.getincrementaldecoder("utf-8")("replace"), self._length
        offsets = []
        self._length += len(delta.text)
        for token in delta.tokens:
            offsets.append(min(at, self._length))
            at += len(decoder.decode(self._tokenizer.token_bytes(token.id or 0)))
        chosen = [{self._text(t.id): _finite(t.logprob)} for t in delta.tokens]
        others = [self._others(t) | one for t, one in zip(delta.tokens, chosen, strict=True)]
        return {
            "tokens": [text for one in chosen for text in one],
            "token_logprobs": [value for one in chosen for value in one.values()],
            "top_logprobs": others if self._top else None,
            "text_offset": offsets,
        }

    def _others(self, token: TokenEvent) -> dict[str, float]:
        return {self._text(id): value for id, value in token.top_logprobs}

    def _text(self, id: int | None) -> str:
        data = self._tokenizer.token_bytes(id or 0)
        try:
            return data.decode()
        except UnicodeDecodeError:  # a part of a character, as OpenAI writes it
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


async def collect(answer: TextAnswer) -> TextCompletion:
    """The sum of the chunks. Raises the error of a choice that failed."""
    parts: list[list[TextChoice]] = [[] for _ in range(answer.job.choices)]
    async with aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            for choice in () if isinstance(chunk, Progress) else chunk["choices"]:
                parts[choice["index"]].append(choice)
    return answer.counted([_sum(number, said) for number, said in enumerate(parts)])


def _sum(index: int, parts: Sequence[TextChoice]) -> TextChoice:
    text = "".join(part["text"] for part in parts)
    logprobs = _joined([part["logprobs"] for part in parts])
    choice = _choice(index, text, logprobs, parts[-1]["finish_reason"])
    if "guard" in parts[-1]:
        choice["guard"] = parts[-1]["guard"]
    return choice


def _joined(parts: Sequence[TextLogprobs | None]) -> TextLogprobs | None:
    given = [part for part in parts if part is not None]
    if not given:
        return None
    top = [one for part in given for one in part["top_logprobs"] or ()]
    return {
        "tokens": [token for part in given for token in part["tokens"]],
        "token_logprobs": [value for part in given for value in part["token_logprobs"]],
        "top_logprobs": top or None,
        "text_offset": [at for part in given for at in part["text_offset"]],
    }


def _choice(
    index: int,
    text: str = "",
    logprobs: TextLogprobs | None = None,
    finish_reason: TextFinish | None = None,
) -> TextChoice:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason}


def _finite(logprob: float | None) -> float:
    return LEAST if logprob is None else logprob
