"""The request of chat completions, from OpenAI's fields to what is asked of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt, StrictStr

from gptoss_mlx.engine.options import Options
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.bodies import Body
from gptoss_mlx.server.effort import effort_options
from gptoss_mlx.server.history import (
    JSON,
    aliases_of,
    choice_for,
    functions_of,
    messages_for,
    tools_for,
)
from gptoss_mlx.server.job import Ask
from gptoss_mlx.server.problems import Problem

MOST_CHOICES = 16
MOST_STOPS = 16


class StreamOptions(Body):
    include_usage: StrictBool | None = None


class SamplingFields(Body):
    """Fields that chat and raw completions have in common.

    The penalties, top_k and min_p beyond OpenAI's are named as llama.cpp and vLLM do; -1 tokens at
    most are any number, as LM Studio has it.
    """

    model: StrictStr | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=-1)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=MOST_STOPS)] | None = None
    seed: StrictInt | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    logit_bias: dict[StrictStr, Annotated[float, Field(ge=-100, le=100)]] | None = None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    def options(self) -> Options:
        """Raises Problem."""
        options: Options = {
            "max_tokens": None if self.max_tokens == -1 else self.max_tokens,
            "stop": _stops(self.stop),
            "seed": None if self.seed is None else self.seed % (1 << 63),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": _biases(self.logit_bias),
        }
        return options


class ChatRequest(SamplingFields):
    """The fields that act; `store`, `metadata`, `user`, `prediction` and such change nothing.

    reasoning_budget: the most tokens of reasoning. grammar, regex: what the answer must be.
    """

    messages: Annotated[list[JSON], Field(min_length=1)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    reasoning_effort: StrictStr | None = None
    reasoning: JSON | None = None
    reasoning_budget: Annotated[StrictInt, Field(ge=0)] | None = None
    response_format: JSON | None = None
    grammar: StrictStr | None = None
    regex: StrictStr | None = None
    tools: list[JSON] | None = None
    tool_choice: StrictStr | JSON | None = None
    parallel_tool_calls: StrictBool | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    modalities: list[StrictStr] | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None

    def ask(self) -> tuple[Ask, Aliases]:
        """What is asked of the model, and the names of its tools. Raises Problem."""
        self._refuse()
        functions = functions_of(self.tools)
        aliases = aliases_of(functions)
        options: Options = {
            **self.options(),
            **effort_options(self._effort),
            "tools": tools_for(functions, aliases),
            "response_format": self.response_format,
            "grammar": self.grammar,
            "regex": self.regex,
            "logprobs": self.logprobs,
        }
        # A choice among tools of which none can be called is none.
        if functions or self.tool_choice not in ("auto", "none"):
            options["tool_choice"] = choice_for(self.tool_choice, aliases)
        if self.logprobs and self.top_logprobs is not None:
            options["top_logprobs"] = self.top_logprobs
        if self.reasoning_budget is not None:
            options["reasoning_budget"] = self.reasoning_budget
        if self.max_completion_tokens is not None:
            options["max_tokens"] = self.max_completion_tokens
        messages = messages_for(self.messages, aliases)
        return Ask(self.model, messages, options, self.n or 1), aliases

    @property
    def _effort(self) -> str | None:
        if self.reasoning_effort is not None:
            return self.reasoning_effort
        effort = (self.reasoning or {}).get("effort")
        return effort if isinstance(effort, str) else None

    def _refuse(self) -> None:
        """What cannot be done is said, not passed over. Raises Problem."""
        for name in ("audio", "functions", "function_call", "web_search_options"):
            if getattr(self, name) is not None:
                instead = ": use tools" if name.startswith("function") else ""
                raise Problem(400, f"{name} is not supported{instead}", param=name)
        if any(kind != "text" for kind in self.modalities or ()):
            raise Problem(400, "modalities: gpt-oss writes text only", param="modalities")
        if self.top_logprobs and not self.logprobs:
            raise Problem(400, "top_logprobs needs logprobs: true", param="top_logprobs")


def _stops(stop: str | Sequence[str] | None) -> list[str] | None:
    """Empty ones are left out: some clients send one by default."""
    given = [stop] if isinstance(stop, str) else stop or ()
    return [text for text in given if text] or None


def _biases(given: dict[str, float] | None) -> dict[int, float] | None:
    try:
        return {int(id): bias for id, bias in given.items()} if given else None
    except ValueError:
        bad = next(id for id in given or () if not id.isdecimal())
        raise Problem(400, f"logit_bias: {shown(bad)} is no token id", param="logit_bias") from None
