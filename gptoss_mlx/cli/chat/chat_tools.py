"""The tools of a chat: those of the conversation under way, and the rules of their calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptoss_mlx.cli.asked_tools import AskedTools
from gptoss_mlx.cli.open_tools import OpenTools
from gptoss_mlx.errors import MessageError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.tools.agent import Agent, read_offers
from gptoss_mlx.tools.approval import Approval, Rule

if TYPE_CHECKING:
    from gptoss_mlx.engine.engine import Engine
    from gptoss_mlx.engine.options import Message
    from gptoss_mlx.engine.result import ToolCall
    from gptoss_mlx.tools.guard.guard import Guard
    from gptoss_mlx.tools.tool import Tool

RULES: Mapping[str, Rule] = {"allow": "allow", "ask": "ask", "deny": "deny"}


class ChatTools:
    """asked: the tools, and the rules that each conversation begins with.

    guard: judges what comes in and goes out. choose: asks a person a question, to be answered by
    one of some keys; "" is no answer. None where there is nobody to ask. rules: by the name of a
    tool, in this conversation.
    """

    def __init__(
        self,
        engine: Engine,
        asked: AskedTools | None = None,
        opened: OpenTools | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._engine, self._asked, self._guard = engine, asked or AskedTools(), guard
        self._opened = opened or OpenTools()
        self._chosen: dict[str, Rule] = dict(self._asked.rules)
        self._tools: list[Tool] = []
        self.choose: Callable[[str, str], str] | None = None
        self.rules: dict[str, Rule] = {}

    def __bool__(self) -> bool:
        return bool(self._tools)

    @property
    def offers(self) -> list[Mapping[str, object]]:
        """What the model is told of, which may change between turns."""
        return read_offers(self._tools)[0]

    def begin(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Begin a conversation, or go on with another one, by tools that know of none."""
        if self._asked:
            self._tools = self._opened.tools(self._engine, resumes=_has_run_code(messages))
        names = dict.fromkeys(tool.name for tool in self._tools)
        self.rules = {name: self._chosen.get(name, "allow") for name in names}

    def agent(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Agent:
        """What answers in this conversation. options: `Engine.stream`'s."""
        return Agent(
            self._engine,
            self._tools,
            approval=Approval(self.rules, self._agrees),  # the rules as they are at each call
            most_calls=self._asked.most_calls,
            guard=self._guard,
            messages=messages,
            **options,
        )

    def change(self, name: str, rule: str) -> None:
        """Give a tool another rule, from this conversation on. Raises MessageError."""
        if name not in self.rules:
            raise MessageError(f"{shown(name)} is no tool here, only {', '.join(self.rules)}")
        if rule not in RULES:
            raise MessageError(f"the rule is {shown(rule)}, but must be {', '.join(RULES)}")
        if rule == "ask" and self.choose is None:
            raise MessageError("calls can be asked about on a terminal only, and not with --quiet")
        self.rules[name] = self._chosen[name] = RULES[rule]

    def listing(self) -> str:
        """A line for each tool: its rule, and the calls it takes."""
        calls: dict[str, list[str]] = {name: [] for name in self.rules}
        for recipient, tool in read_offers(self._tools)[1].items():
            calls[tool.name].append(recipient)
        return "\n".join(
            f"{name:16} {rule:6} {', '.join(calls[name])}" for name, rule in self.rules.items()
        )

    def _agrees(self, call: ToolCall) -> bool:
        """Whether the person, who has just seen the call, lets it run."""
        if self.choose is None:
            return False
        tool = read_offers(self._tools)[1].get(call.recipient)
        asked = f"Run this call of {call.name}? y: yes, n: no, a: always in this conversation "
        key = self.choose(asked, "yna")
        if key == "a" and tool is not None:
            self.rules[tool.name] = "allow"
        return key in ("y", "a")


def _has_run_code(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an interpreter has run calls of these messages."""
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    return any(call.get("type") == "python" for call in calls)
