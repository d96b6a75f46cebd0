"""The result of a generation: a stream's events, sorted into answer, reasoning and tool calls."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gptoss_mlx.engine.events import Event, FinishEvent, FinishReason, Limit, Timings, TokenEvent

_SPECIAL = re.compile(r"<\|\w+\|>")
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|endoftext|>")
_PARTS: Mapping[str | None, str] = {"analysis": "reasoning", "commentary": "preamble"}


@dataclass(frozen=True)
class ToolCall:
    """A function the model wants called; arguments is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str

    @property
    def message(self) -> dict[str, object]:
        """The call in OpenAI's form, as it stands in an assistant's message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


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
    parts = {"text": "", "reasoning": "", "preamble": ""}
    for event in tokens:
        if event.kind == "content" and event.recipient is None:
            parts[_PARTS.get(event.channel, "text")] += event.text
    return Result(
        **parts,
        tool_calls=_tool_calls(tokens),
        finish_reason=finish.reason,
        prompt_tokens=finish.prompt_tokens,
        completion_tokens=finish.completion_tokens,
        seed=finish.seed,
        timings=finish.timings,
        token_ids=tuple(event.id for event in tokens if event.id is not None),
        tokens=tuple(tokens),
        limit=finish.limit,
    )


def _tool_calls(tokens: Iterable[TokenEvent]) -> tuple[ToolCall, ...]:
    """The messages to a recipient, each from the header that names it or from its first content."""
    calls: list[tuple[str, list[str]]] = []
    inside = False
    for event in tokens:
        if event.kind == "header" and not _is_stray(event):
            inside = False
        if event.recipient is None or (event.kind == "header" and not _opens(event)):
            continue
        if not inside:
            calls.append((event.recipient, []))
            inside = True
        if event.kind == "content":
            calls[-1][1].append(event.text)
    return tuple(
        ToolCall(f"call_{secrets.token_hex(12)}", name.removeprefix("functions."), "".join(text))
        for name, text in calls
    )


def _is_stray(header: TokenEvent) -> bool:
    """Whether this is a special token inside a message, where the model should write none."""
    return _SPECIAL.fullmatch(header.markup) is not None and header.markup not in _ENDS


def _opens(header: TokenEvent) -> bool:
    return header.markup.endswith("<|message|>")
