"""Fields of Ollama's requests, and what they ask of a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt, StrictStr

from gptoss_mlx.engine.options import Message, Options
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.bodies import Body
from gptoss_mlx.server.effort import effort_options
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.spec.sampling import MAX_SEED, SMALLEST

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_PART = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(rf"([+-]?)((?:{_PART.pattern})+)")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?")
_LONGEST = 64

_AGE = 10 * 365 * 86400
"""Seconds; a model that stays longer stays for ever."""


class SamplerFields(Body):
    """Ollama's `options`. num_ctx changes nothing, since the context is the server's; nor do
    num_keep, num_gpu, mirostat and such.

    num_predict: -1 and -2, or any number below 1, are as many as the context has room for. Whole
    numbers may be written 4.0.
    """

    num_predict: int | None = None
    num_ctx: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: StrictStr | list[StrictStr] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def options(self) -> Options:
        predict, seed, top_p = self.num_predict, self.seed, self.top_p
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        options: Options = {
            "max_tokens": None if predict is None or predict < 1 else predict,
            "temperature": self.temperature,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            # 0 keeps the most probable token, and more than all is all.
            "top_p": None if top_p is None else min(max(top_p, SMALLEST), 1.0),
            "min_p": self.min_p,
            "seed": None if seed is None or seed == -1 else seed % (MAX_SEED + 1),
            "stop": [text for text in stops if text] or None,
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        return options


class NamedModel(Body):
    """A request on a model; `name` is what older clients call it."""

    model: StrictStr | None = None
    name: StrictStr | None = None

    @property
    def wanted(self) -> str | None:
        return self.model or self.name


class AnswerFields(NamedModel):
    """What chat and generate have in common. keep_alive: seconds, or a text such as "5m"."""

    stream: StrictBool | None = None
    format: StrictStr | Mapping[str, Any] | None = None
    think: StrictBool | StrictStr | None = None
    keep_alive: float | StrictStr | None = None
    options: SamplerFields | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None

    @property
    def streams(self) -> bool:
        return self.stream is not False

    @property
    def stays(self) -> float | None:
        """Seconds that the model then stays loaded, infinity for ever. Raises Problem."""
        return None if self.keep_alive is None else seconds_of(self.keep_alive)

    def asked(self) -> Options:
        """Raises Problem."""
        options: Options = (self.options or SamplerFields()).options()
        options |= self._effort()
        options["logprobs"] = self.logprobs
        if self.logprobs and self.top_logprobs is not None:
            options["top_logprobs"] = self.top_logprobs
        if (asked := _response_format(self.format)) is not None:
            options["response_format"] = asked
        return options

    def _effort(self) -> Options:
        if isinstance(self.think, str):
            return effort_options(self.think or None, "think")
        return effort_options("none") if self.think is False else {}


def refuse_images(images: object, param: str) -> None:
    """Raises Problem."""
    if images:
        raise Problem(400, f"{param}: gpt-oss reads text", code="unsupported_content", param=param)


def seconds_of(given: float | str) -> float:
    """A duration, infinity if it is negative. Raises Problem."""
    seconds = given if isinstance(given, float) else _seconds(given)
    return seconds if 0 <= seconds <= _AGE else math.inf


def _seconds(text: str) -> float:
    if len(text) <= _LONGEST and _NUMBER.fullmatch(text):
        return float(text)
    found = _DURATION.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        said = f"keep_alive is {shown(text)}, but must be seconds, or such as 5m, 1h30m or -1"
        raise Problem(400, said, param="keep_alive")
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(found[2]))
    return -total if found[1] == "-" else total


def _response_format(given: str | Mapping[str, Any] | None) -> Message | None:
    if not given:
        return None
    if given == "json":
        return {"type": "json_object"}
    if isinstance(given, str):
        said = f'format is {shown(given)}, but must be "json" or a JSON schema'
        raise Problem(400, said, param="format")
    return {"type": "json_schema", "json_schema": {"name": "response", "schema": given}}


def named_tools(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages with the name of a tool where other APIs have it."""
    return [
        {"name": message["tool_name"], **message} if message.get("tool_name") else message
        for message in messages
    ]
