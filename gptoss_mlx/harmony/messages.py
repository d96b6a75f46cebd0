"""Turns OpenAI chat messages into Harmony turns; an error names the message.

One chat message becomes one turn, or several for an assistant (reasoning, preamble or answer, tool
calls). An assistant's text is a preamble beside tool calls, or where the message's `channel` says
"commentary". Calls of builtin tools are part of the analysis. Nothing here knows about tokens.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from gptoss_mlx.errors import MessageError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.schema import clean
from gptoss_mlx.harmony.tools import recipient_of
from gptoss_mlx.spec.recipients import BUILTIN, FUNCTIONS, type_of

INSTRUCTIONS = "# Instructions\n\n"
ROLES = ("system", "developer", "user", "assistant", "tool")
_REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")
_TEXT_TYPES = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Turn:
    """One Harmony message: role is user, assistant, developer or tool (then `name` is shown)."""

    role: str
    text: str
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None

    @property
    def is_reasoning(self) -> bool:
        """Whether the model forgets it after its answer: analysis, calls of builtin tools in it and
        their results."""
        return self.channel == "analysis"


def read_messages(
    messages: Sequence[Mapping[str, Any]], system: str | None
) -> tuple[str | None, list[Turn]]:
    """The developer's instructions (None if there are none) and the turns after them.

    System and developer messages before the first other message are instructions, joined to
    `system` by an empty line; later ones stay where they are. Raises MessageError.
    """
    reader = _Reader()
    if system is not None:
        if not isinstance(system, str):
            raise MessageError("system: expected a text")
        reader.instructions.append(clean(system))
    for index, message in enumerate(messages):
        reader.read(f"message {index}", message)
    instructions = [text for text in reader.instructions if text]
    return ("\n\n".join(instructions) if instructions else None), reader.turns


class _Reader:
    """The state of one pass over the messages."""

    def __init__(self) -> None:
        self.instructions: list[str] = []
        self.turns: list[Turn] = []
        self.calls: dict[str, str] = {}  # recipients by id
        self.unanswered: Counter[str] = Counter()  # calls without a result, for every recipient
        self.unnamed: deque[str] = deque()  # recipients called, in order; some are answered
        self.answered: Counter[str] = Counter()  # how many of `unnamed` are answered

    def read(self, where: str, message: Any) -> None:
        if not isinstance(message, Mapping):
            raise MessageError(f"{where}: expected an object with role and content")
        role = message.get("role")
        if role not in ROLES:
            raise MessageError(
                f"{where}: role {shown(role)} is unknown: use one of {', '.join(ROLES)}"
            )
        if role in ("system", "developer"):
            text = _content(where, message)
            if self.turns:
                self.turns.append(Turn("developer", INSTRUCTIONS + text))
            else:
                self.instructions.append(text)
        elif role == "user":
            self.turns.append(Turn("user", _content(where, message)))
        elif role == "assistant":
            self._assistant(where, message)
        else:
            self._tool(where, message)

    def _assistant(self, where: str, message: Mapping[str, Any]) -> None:
        reasoning = _reasoning(where, message)
        calls = message.get("tool_calls") or ()
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise MessageError(f"{where}: tool_calls must be a list")
        if reasoning:
            self.turns.append(Turn("assistant", reasoning, channel="analysis"))
        if message.get("content") is not None or not (calls or reasoning):
            text = _content(where, message)
            if text or not calls:
                preamble = calls or message.get("channel") == "commentary"
                channel = "commentary" if preamble else "final"
                self.turns.append(Turn("assistant", text, channel=channel))
        for number, call in enumerate(calls):
            self._call(f"{where}: tool call {number}", call)

    def _call(self, where: str, call: Any) -> None:
        if is_dataclass(call) and not isinstance(call, type):  # as in a `Result`
            call = asdict(call)
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise MessageError(f"{where}: expected an object with a function")
        recipient = recipient_of(where, call.get("type"), function.get("name"))
        builtin = type_of(recipient) in BUILTIN
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            arguments = json.dumps(clean(arguments), ensure_ascii=False)
        if not isinstance(arguments, str):
            raise MessageError(f"{where}: arguments must be {'' if builtin else 'JSON '}text")
        if (id := _id(where, call.get("id"))) is not None:
            self.calls[id] = recipient
        self.unanswered[recipient] += 1
        self.unnamed.append(recipient)
        self.turns.append(
            Turn(
                "assistant",
                clean(arguments),
                channel="analysis" if builtin else "commentary",
                recipient=recipient,
                content_type="code" if builtin else "<|constrain|>json",
            )
        )

    def _tool(self, where: str, message: Mapping[str, Any]) -> None:
        found = self._called(where, message)
        if self.unanswered[found] > 0:
            self.unanswered[found] -= 1
            self.answered[found] += 1
        self.turns.append(
            Turn(
                "tool",
                _content(where, message),
                name=found,
                channel="analysis" if type_of(found) in BUILTIN else "commentary",
                recipient="assistant",
            )
        )

    def _called(self, where: str, message: Mapping[str, Any]) -> str:
        """The recipient of the call that a tool's message is the result of."""
        id, name = _id(where, message.get("tool_call_id")), message.get("name")
        if id is not None:
            if id not in self.calls:
                raise MessageError(f"{where}: no earlier tool call has the id {shown(id)}")
            return self.calls[id]
        if name is not None:
            for recipient in (f"{FUNCTIONS}{name}", name) if isinstance(name, str) else ():
                if recipient in self.unanswered:
                    return recipient
            raise MessageError(f"{where}: no earlier tool call is of a function {shown(name)}")
        while self.unnamed and self.answered[self.unnamed[0]] > 0:
            self.answered[self.unnamed.popleft()] -= 1
        if not self.unnamed:
            raise MessageError(f"{where}: a tool result needs the tool_call_id of a call")
        return self.unnamed[0]


def _id(where: str, id: Any) -> str | None:
    if id is not None and not isinstance(id, (str, int)):
        raise MessageError(f"{where}: the id of a tool call is {shown(id)}, but must be a text")
    return id if id is None or isinstance(id, str) else shown(id)


def _reasoning(where: str, message: Mapping[str, Any]) -> str:
    for key in _REASONING_KEYS:
        value = message.get(key)
        if value is not None:
            return _text(where, key, value)
    return ""


def _content(where: str, message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None:
        raise MessageError(f"{where}: content is missing")
    return _text(where, "content", content)


def _text(where: str, key: str, value: Any) -> str:
    if isinstance(value, str):
        return str(clean(value))
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise MessageError(f"{where}: {key} must be a text or a list of text parts")
    texts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in _TEXT_TYPES or not isinstance(part.get("text"), str):
            raise MessageError(
                f"{where}: {key} part {number} is {shown(kind)}: only text is understood"
            )
        texts.append(part["text"])
    return str(clean("".join(texts)))
