"""OpenAI's chat and raw completions with LM Studio's `stats`, `model_info` and `runtime`."""

from __future__ import annotations

from typing import Literal, cast

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx import __version__
from gptoss_mlx.engine.events import FinishEvent
from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.bodies import read_body
from gptoss_mlx.server.facts import facts_of
from gptoss_mlx.server.job import Job
from gptoss_mlx.server.lmstudio.shelf import ARCH, FORMAT
from gptoss_mlx.server.openai import chat, completions
from gptoss_mlx.server.openai.chat_request import ChatRequest
from gptoss_mlx.server.openai.completions import TextRequest
from gptoss_mlx.server.openai.stream import frames
from gptoss_mlx.server.registry import ServedModel
from gptoss_mlx.server.replies import FrameStream, reply
from gptoss_mlx.server.service import service_of

StopReason = Literal[
    "eosFound",
    "toolCalls",
    "maxPredictedTokensReached",
    "contextLengthReached",
    "userStopped",
    "failed",
]


class Stats(TypedDict):
    """Tokens a second and seconds, of the first answer. stop_reason: eosFound also where a stop
    text was found, failed where the guard has blocked it."""

    tokens_per_second: float
    time_to_first_token: float
    generation_time: float
    stop_reason: StopReason


class StudioModelInfo(TypedDict):
    arch: str
    quant: str
    format: str
    context_length: int


class Runtime(TypedDict):
    name: str
    version: str
    supported_formats: list[str]


class Told(TypedDict):
    stats: Stats
    model_info: StudioModelInfo
    runtime: Runtime


class StudioCompletion(chat.Completion, Told):
    pass


class StudioChunk(chat.Chunk, Told):
    """The last chunk of a chat; the others are OpenAI's."""


class StudioText(completions.TextCompletion, Told):
    """A raw completion, or its last chunk."""


class StudioAnswer(chat.Answer):
    """A chat whose last chunk tells of model and times."""

    def __init__(self, entry: ServedModel, job: Job, aliases: Aliases, logprobs: bool) -> None:
        super().__init__(job, aliases, logprobs)
        self.entry = entry

    def last_chunk(self) -> StudioChunk:
        return cast(StudioChunk, {**super().last_chunk(), **told(self.entry, self)})


class StudioTextAnswer(completions.TextAnswer):
    """A raw completion whose last chunk tells of model and times."""

    def __init__(self, entry: ServedModel, job: Job, body: TextRequest) -> None:
        super().__init__(job, body)
        self.entry = entry

    def last_chunk(self) -> StudioText:
        return cast(StudioText, {**super().last_chunk(), **told(self.entry, self)})


async def create_chat(request: Request) -> Response:
    body = await read_body(request, ChatRequest)
    service = service_of(request)
    ask, aliases = body.ask()
    job = await service.start(ask)
    entry = service.registry.find(job.model)
    answer = StudioAnswer(entry, job, aliases, logprobs=bool(body.logprobs))
    if body.stream:
        return FrameStream(frames(answer, with_usage=True), service.policy)
    return await reply(request, collect_chat(answer))


async def create_text(request: Request) -> Response:
    body = await read_body(request, TextRequest)
    service = service_of(request)
    job = await service.start(body.ask())
    answer = StudioTextAnswer(service.registry.find(job.model), job, body)
    if body.stream:
        return FrameStream(frames(answer, with_usage=True), service.policy)
    return await reply(request, collect_text(answer))


async def collect_chat(answer: StudioAnswer) -> StudioCompletion:
    whole = await chat.collect(answer)
    return cast(StudioCompletion, {**whole, **told(answer.entry, answer)})


async def collect_text(answer: StudioTextAnswer) -> StudioText:
    whole = await completions.collect(answer)
    return cast(StudioText, {**whole, **told(answer.entry, answer)})


def told(entry: ServedModel, answer: StudioAnswer | StudioTextAnswer) -> Told:
    facts, first = facts_of(entry), answer.finishes[0]
    timings = first.timings
    plan = None if entry.engine is None else entry.engine.plan
    return {
        "stats": {
            "tokens_per_second": timings.decode_rate,
            "time_to_first_token": timings.first_token,
            "generation_time": timings.decode,
            "stop_reason": "failed" if answer.is_blocked else _stop_reason(first),
        },
        "model_info": {
            "arch": ARCH,
            "quant": facts.quantization,
            "format": FORMAT,
            "context_length": facts.context,
        },
        "runtime": {
            "name": "gptoss_mlx" if plan is None else f"gptoss_mlx-{plan.backend}",
            "version": __version__,
            "supported_formats": [FORMAT, "safetensors"],
        },
    }


def _stop_reason(finish: FinishEvent) -> StopReason:
    if finish.reason == "tool_calls":
        return "toolCalls"
    if finish.reason == "length":
        full = finish.limit == "context"
        return "contextLengthReached" if full else "maxPredictedTokensReached"
    return "userStopped" if finish.reason == "cancelled" else "eosFound"
