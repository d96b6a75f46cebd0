"""The events of an agent: those of the model's turns, and of the calls between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from gptoss_mlx.engine.events import Event
from gptoss_mlx.engine.result import ToolCall
from gptoss_mlx.tools.guard.verdict import GuardEvent
from gptoss_mlx.tools.tool import Outcome


@dataclass(frozen=True)
class CallEvent:
    """A call that the model has written, before it is run or refused."""

    call: ToolCall


@dataclass(frozen=True)
class OutcomeEvent:
    """What a call gave; the model reads `outcome.text` next."""

    call: ToolCall
    outcome: Outcome


@dataclass(frozen=True)
class HeldEvent:
    """Progress of a turn that is held back until a guard has judged it: so many tokens so far."""

    tokens: int


AgentEvent: TypeAlias = Event | CallEvent | OutcomeEvent | GuardEvent | HeldEvent
