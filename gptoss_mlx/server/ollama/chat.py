"""Chat, `POST /api/chat`: lines of JSON, or one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, cast

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.bodies import read_body
from gptoss_mlx.server.history import aliases_of, functions_of, messages_for, tools_for
from gptoss_mlx.server.job import Ask
from gptoss_mlx.server.logprobs import Chosen
from gptoss_mlx.server.ollama.answer import (
    CompleteCall,
    Fragment,
    LineHead,
    OllamaAnswer,
    Stopwatch,
    Tally,
    replied,
)
from gptoss_mlx.server.ollama.fields import AnswerFields, named_tools, refuse_images
from gptoss_mlx.server.ollama.residence import without_prompt
from gptoss_mlx.server.ollama.shape import now
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.service import service_of


class TalkRequest(AnswerFields):
    """The fields that act. Without messages the model is loaded, or by keep_alive 0 unloaded."""

    messages: list[Mapping[str, Any]] | None = None
    tools: list[Mapping[str, Any]] | None = None

    def ask(self) -> tuple[Ask, Aliases]:
        """What is asked of the model, and the names of its tools. Raises Problem."""
        messages: Sequence[Mapping[str, Any]] = self.messages or ()
        for number, message in enumerate(messages):
            refuse_images(message.get("images"), f"messages.{number}.images")
        functions = functions_of(self.tools)
        aliases = aliases_of(functions)
        options = self.asked()
        options["tools"] = tools_for(functions, aliases)
        return Ask(self.wanted, messages_for(named_tools(messages), aliases), options), aliases


class TalkMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[CompleteCall]]


class TalkLine(LineHead, Tally):
    """A line of a chat; the last one, or the only one, has the counts and times."""

    message: TalkMessage
    logprobs: NotRequired[list[Chosen]]


async def create(request: Request) -> Response:
    """The endpoint."""
    watch = Stopwatch()
    body = await read_body(request, TalkRequest)
    service = service_of(request)
    if not body.messages:
        model, counts = await without_prompt(service, body, watch)
        return JSONReply(talk_line(model, Fragment(), counts))
    ask, aliases = body.ask()
    job = await service.start(ask, keep_alive=body.stays)
    watch.loaded()
    answer = OllamaAnswer(job, aliases, body.wanted, watch, bool(body.logprobs))
    return await replied(request, answer, body.streams, talk_line)


def talk_line(model: str, part: Fragment, counts: Tally | None = None) -> TalkLine:
    message: TalkMessage = {"role": "assistant", "content": part.content}
    if part.thinking:
        message["thinking"] = part.thinking
    if part.calls:
        message["tool_calls"] = list(part.calls)
    shown: TalkLine = {
        "model": model,
        "created_at": now(),
        "done": counts is not None,
        "message": message,
    }
    if part.logprobs:
        shown["logprobs"] = list(part.logprobs)
    # A cast, because mypy takes no part of a typed dictionary for an update of it.
    return shown if counts is None else cast(TalkLine, {**shown, **counts})
