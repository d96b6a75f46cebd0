"""Generation from one prompt, `POST /api/generate`: lines of JSON, or one object."""

from __future__ import annotations

from typing import Any, NotRequired, cast

from pydantic import StrictBool, StrictStr
from starlette.requests import Request
from starlette.responses import Response

from gptoss_mlx.engine.options import Options
from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.bodies import read_body
from gptoss_mlx.server.job import Ask
from gptoss_mlx.server.logprobs import Chosen
from gptoss_mlx.server.ollama.answer import (
    Fragment,
    LineHead,
    OllamaAnswer,
    Stopwatch,
    Tally,
    replied,
)
from gptoss_mlx.server.ollama.fields import AnswerFields, refuse_images
from gptoss_mlx.server.ollama.residence import without_prompt
from gptoss_mlx.server.ollama.shape import now
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.service import service_of


class Telling(AnswerFields):
    """The fields that act; `context` and `template` change nothing. raw: the prompt is continued as
    it is, where the texts of control tokens stand for the tokens."""

    prompt: StrictStr | None = None
    system: StrictStr | None = None
    suffix: StrictStr | None = None
    images: Any = None
    raw: StrictBool | None = None

    def ask(self) -> Ask:
        """Raises Problem."""
        refuse_images(self.images, "images")
        if self.suffix:
            said = "suffix: gpt-oss continues a text, and fills nothing in"
            raise Problem(400, said, param="suffix")
        prompt = self.prompt or ""
        if self.raw:
            return Ask(self.wanted, prompt, {**self.asked(), **self._plain()})
        messages = [{"role": "user", "content": prompt}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        return Ask(self.wanted, messages, self.asked())

    def _plain(self) -> Options:
        for name in ("system", "think", "format"):
            if getattr(self, name):
                raise Problem(400, f"{name} has no meaning for a raw prompt", param=name)
        return {"raw": True, "reasoning_budget": None}


class ToldLine(LineHead, Tally):
    """A line of a generation; the last one, or the only one, has the counts and times."""

    response: str
    thinking: NotRequired[str]
    logprobs: NotRequired[list[Chosen]]


async def create(request: Request) -> Response:
    """The endpoint."""
    watch = Stopwatch()
    body = await read_body(request, Telling)
    service = service_of(request)
    if not body.prompt:
        model, counts = await without_prompt(service, body, watch)
        return JSONReply(told_line(model, Fragment(), counts))
    ask = body.ask()
    job = await service.start(ask, keep_alive=body.stays)
    watch.loaded()
    answer = OllamaAnswer(job, Aliases(()), body.wanted, watch, bool(body.logprobs))
    return await replied(request, answer, body.streams, told_line)


def told_line(model: str, part: Fragment, counts: Tally | None = None) -> ToldLine:
    shown: ToldLine = {
        "model": model,
        "created_at": now(),
        "done": counts is not None,
        "response": part.content,
    }
    if part.thinking:
        shown["thinking"] = part.thinking
    if part.logprobs:
        shown["logprobs"] = list(part.logprobs)
    # A cast, because mypy takes no part of a typed dictionary for an update of it.
    return shown if counts is None else cast(ToldLine, {**shown, **counts})
