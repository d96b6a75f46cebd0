"""The result of a generation: a stream's events, sorted into answer, reasoning and tool calls."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from gptoss_mlx.engine.deltas import Delta, Part, Splitter
from gptoss_mlx.engine.events import Event, FinishEvent, FinishReason, Limit, Timings, TokenEvent
from gptoss_mlx.spec.recipients import FUNCTIONS, type_of


@dataclass(frozen=True)
class ToolCall:
    """A function the model wants called; arguments is the JSON text as the model wrote it.

    type: "function", or the builtin tool that is called. The arguments of "python" are code.
    """

    id: str
    name: str
    arguments: str
    type: str = "function"

    @property
    def recipient(self) -> str:
        """Whom the model addressed."""
        return f"{FUNCTIONS}{self.name}" if self.type == "function" else self.name

    @property
    def message(self) -> dict[str, object]:
        """The call in OpenAI's form, as it stands in an assistant's message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": self.type, "function": function}


@dataclass(frozen=True)
class Result:
    """A whole generation.

    text: the answer (all content in raw mode); reasoning: the analysis; preamble: what the model
    tells the user before it calls a tool. limit: the one that was reached, where finish_reason is
    "length". tokens: the events with their log-probabilities.
    """

    text: str
    reasoning: str
    preamble: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seed: int
    timings: Timings
    token_ids: tuple[int, ...] = ()
    tokens: tuple[TokenEvent, ...] = field(default=(), repr=False)
    limit: Limit | None = None

    @property
    def message(self) -> dict[str, object]:
        """The assistant's message in OpenAI's form: `[*messages, result.message]` continues from
        it.

        content: the answer, or beside tool calls the preamble; if that is empty, None beside a tool
        call or reasoning, else "".
        """
        text = self.preamble if self.tool_calls else self.text or self.preamble
        nothing = None if self.tool_calls or self.reasoning else ""
        message: dict[str, object] = {"role": "assistant", "content": text or nothing}
        if self.reasoning:
            message["reasoning"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.message for call in self.tool_calls]
        return message


def collect(events: Iterable[Event]) -> Result:
    """A stream's events as one `Result`. Raises ValueError if the stream has not finished."""
    tokens: list[TokenEvent] = []
    finish: FinishEvent | None = None
    for event in events:
        if isinstance(event, TokenEvent):
            tokens.append(event)
        elif isinstance(event, FinishEvent):
            finish = event
    if finish is None:
        raise ValueError("the stream has not finished")
    parts = defaultdict[Part, list[str]](list)
    calls: dict[int, tuple[Delta, list[str]]] = {}  # by the number of the message
    splitter = Splitter()
    for delta in filter(None, map(splitter.push, tokens)):
        parts[delta.part].append(delta.text)
        if delta.part == "call":
            calls.setdefault(delta.message, (delta, []))[1].append(delta.text)
    return Result(
        text="".join(parts["answer"]),
        reasoning="".join(parts["reasoning"]),
        preamble="".join(parts["preamble"]),
        tool_calls=tuple(_call(first, "".join(texts)) for first, texts in calls.values()),
        finish_reason=finish.reason,
        prompt_tokens=finish.prompt_tokens,
        completion_tokens=finish.completion_tokens,
        seed=finish.seed,
        timings=finish.timings,
        token_ids=tuple(event.id for event in tokens if event.id is not None),
        tokens=tuple(tokens),
        limit=finish.limit,
    )


def _call(first: Delta, arguments: str) -> ToolCall:
    return ToolCall(new_call_id(), first.name, arguments, type_of(first.recipient))


def new_call_id() -> str:
    """An id for a call, which no other has."""
    return f"call_{secrets.token_hex(12)}"
