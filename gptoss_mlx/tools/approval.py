"""Which calls of a model are run, and how many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from gptoss_mlx.engine.result import ToolCall

MOST_CALLS = 50
"""Of one run, where nothing else is said."""

DECLINED = "The user has declined this call."
"""What the model is told of a call that a person does not let run."""

Rule: TypeAlias = Literal["allow", "ask", "deny"]
"""Whether a tool's calls are run, are run if a person agrees, or are not."""


@dataclass(frozen=True)
class Approval:
    """Which calls are run.

    rules: by the name of a tool; others are allowed. ask: whether a person agrees to a call;
    without it nobody does.
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)
    ask: Callable[[ToolCall], bool] | None = None

    def refusal(self, name: str, call: ToolCall) -> str | None:
        """What the model is told where a call is not run. name: the tool's."""
        rule = self.rules.get(name, "allow")
        if rule == "deny":
            return f"Calls of {name} are not permitted here."
        if rule == "ask" and not (self.ask is not None and self.ask(call)):
            return DECLINED
        return None
