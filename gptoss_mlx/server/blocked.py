"""A blocked answer, as every API has it: what its client is told in place of what was said.

It quotes nothing of what a model wrote. The reason of a label might, and so might its category,
which is given only where the policy has it in these words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from typing_extensions import TypedDict

from gptoss_mlx.engine.events import FinishEvent, Timings
from gptoss_mlx.tools.guard.verdict import GuardEvent

NOTHING_READ = FinishEvent("stop", 0, 0, 0, Timings())
"""The end of an answer that was never begun."""


class GuardShown(TypedDict):
    """What the guard found, beyond every API: of the request, or of the answer to it.

    category: of the policy. reason: None for an answer, which it could quote.
    """

    what: Literal["input", "output"]
    label: Literal["violation", "failed"]
    category: str | None
    reason: str | None


@dataclass(frozen=True)
class Blocked:
    """The end of a choice that is blocked. line: what stands in place of it."""

    finish: FinishEvent
    line: str
    shown: GuardShown

    @property
    def explanation(self) -> str:
        """The line, with the reason."""
        reason = self.shown["reason"]
        return f"{self.line} {reason}" if reason else self.line


def blocked_request(event: GuardEvent) -> Blocked:
    """event: on a text that the client sent."""
    shown: GuardShown = {
        "what": "input",
        "label": "failed" if event.label == "failed" else "violation",
        "category": event.category or None,
        "reason": event.reason or None,
    }
    return Blocked(NOTHING_READ, event.line, shown)


def blocked_answer(event: GuardEvent, finish: FinishEvent, policy: str) -> Blocked:
    """event: on what a model wrote, which ended so. policy: the words that may be told."""
    category = event.category if event.category in policy else ""
    shown: GuardShown = {
        "what": "output",
        "label": "failed" if event.label == "failed" else "violation",
        "category": category or None,
        "reason": None,
    }
    ended = replace(finish, reason="stop", limit=None, stopped_by=None)
    return Blocked(ended, replace(event, category=category).line, shown)
