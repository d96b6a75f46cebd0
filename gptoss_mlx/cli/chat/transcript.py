"""A transcript: the messages of a conversation, and how they are to be answered.

It is a value: what changes it gives a new one, so that a turn that fails leaves the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeAlias

from gptoss_mlx.cli.options import EFFORTS
from gptoss_mlx.errors import GptOssError, SessionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.messages import read_messages
from gptoss_mlx.harmony.schema import clean
from gptoss_mlx.spec.sampling import Sampling

FORMAT = 1
"""Of a saved transcript."""

NUMBERS: Mapping[str, type] = MappingProxyType(
    {
        "temperature": float,
        "top_p": float,
        "top_k": int,
        "min_p": float,
        "repetition_penalty": float,
        "presence_penalty": float,
        "frequency_penalty": float,
        "seed": int,
        "max_tokens": int,
        "max_time": float,
    }
)
"""The options of a stream that are a number, and its type."""

_KEYS = ("format", "model", "system", "reasoning_effort", "options", "messages")

Said: TypeAlias = Mapping[str, Any]
"""A message as OpenAI's JSON has it."""


@dataclass(frozen=True)
class Transcript:
    """messages: users' and assistants', in order. system: the instructions. reasoning: the effort.
    options: those of `Engine.stream` that were set. model: the one that answered last.
    """

    messages: tuple[Said, ...] = ()
    system: str | None = None
    reasoning: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    @property
    def turns(self) -> tuple[tuple[Said, ...], ...]:
        """The messages in turns, each of which begins with a user's."""
        starts = [i for i, one in enumerate(self.messages) if one["role"] == "user"]
        return tuple(self.messages[a:b] for a, b in pairwise([*starts, len(self.messages)]))

    @property
    def last_message(self) -> str | None:
        """The text of the user's last message."""
        return plain_text(self.turns[-1][0]) if self.turns else None

    @property
    def last_answer(self) -> Said | None:
        """The last message, if it is an assistant's."""
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last["role"] == "assistant" else None

    @property
    def last_reasoning(self) -> str:
        """The reasoning of the last answer that has one, "" if none has."""
        found = (one["reasoning"] for one in reversed(self.messages) if one.get("reasoning"))
        return next((text for text in found if isinstance(text, str)), "")

    def with_message(self, text: str) -> Transcript:
        message = {"role": "user", "content": clean(text)}
        return replace(self, messages=(*self.messages, message))

    def with_answer(self, message: Said) -> Transcript:
        return replace(self, messages=(*self.messages, message))

    def without_last_turn(self) -> Transcript:
        kept = len(self.messages) - (len(self.turns[-1]) if self.turns else 0)
        return replace(self, messages=self.messages[:kept])

    def without_oldest(self, count: int) -> Transcript:
        """Without the first turns; what stood before them, such as instructions, stays."""
        turns = self.turns
        head = self.messages[: len(self.messages) - sum(map(len, turns))]
        return replace(self, messages=(*head, *(one for turn in turns[count:] for one in turn)))

    def with_option(self, name: str, value: object) -> Transcript:
        """With an option of the stream, or without it (None). Raises SessionError."""
        options = {key: old for key, old in self.options.items() if key != name}
        if value is not None:
            options[name] = value
        check_options(options)
        return replace(self, options=options)

    def asked(self) -> dict[str, Any]:
        """The options of `Engine.stream`."""
        given = {"system": self.system, "reasoning": self.reasoning}
        return {**self.options, **{name: value for name, value in given.items() if value}}

    def as_json(self) -> dict[str, Any]:
        """As it is saved."""
        return {
            "format": FORMAT,
            "model": self.model,
            "system": self.system,
            "reasoning_effort": self.reasoning,
            "options": dict(self.options),
            "messages": list(self.messages),
        }

    def exported(self) -> dict[str, Any]:
        """As `generate --messages` reads it."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        value: dict[str, Any] = {"messages": [*head, *self.messages]}
        return value | ({"reasoning_effort": self.reasoning} if self.reasoning else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Transcript:
        """The transcript that was saved. Raises SessionError, which says what is wrong in it."""
        if value.get("format") != FORMAT:
            raise SessionError(f"format is {shown(value.get('format'))}, but must be {FORMAT}")
        for key in value:
            if key not in _KEYS:
                raise SessionError(f"{shown(key)} is not understood")
        messages, options = value.get("messages"), value.get("options", {})
        if not isinstance(messages, list) or not isinstance(options, dict):
            raise SessionError("messages must be a list, and options an object")
        for name in ("model", "system", "reasoning_effort"):
            if not isinstance(value.get(name), str | None):
                raise SessionError(f"{name} is {shown(value[name])}, but must be a text")
        effort = value.get("reasoning_effort")
        if effort is not None and effort not in EFFORTS:
            raise SessionError(
                f"reasoning_effort is {shown(effort)}, but must be low, medium or high"
            )
        try:
            read_messages(messages, None)
        except GptOssError as error:
            raise SessionError(str(error)) from error
        options = _with_biases(options)
        check_options(options)
        return cls(tuple(messages), value.get("system"), effort, options, value.get("model") or "")


def plain_text(message: Said) -> str:
    """The text of a message, "" where it has none."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else ""


def check_options(options: Mapping[str, Any]) -> None:
    """Raises SessionError for an option that no stream has, or with a value out of range."""
    sampling = {name: options[name] for name in options if name not in ("stop", *_LENGTHS)}
    try:
        Sampling.of(sampling)
    except (GptOssError, TypeError) as error:
        raise SessionError(str(error)) from error
    for name, kind in _LENGTHS.items():
        value = options.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 1e9 + 1:
            raise SessionError(f"{name} is {shown(value)}, but must be above 0")
    stop = options.get("stop", ())
    if not isinstance(stop, list | tuple) or not all(isinstance(s, str) and s for s in stop):
        raise SessionError(f"stop is {shown(stop)}, but must be a list of texts")


_LENGTHS: Mapping[str, Any] = MappingProxyType({"max_tokens": int, "max_time": int | float})


def _with_biases(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with whole numbers as the keys of logit_bias; JSON has only texts."""
    biases = options.get("logit_bias")
    if not isinstance(biases, dict):
        return dict(options)
    try:
        return {**options, "logit_bias": {int(id): bias for id, bias in biases.items()}}
    except ValueError as error:
        raise SessionError("logit_bias must map token ids to numbers") from error
