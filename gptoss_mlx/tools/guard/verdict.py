"""A verdict on a text: the label that it got under a policy, why, and whether it is blocked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

What: TypeAlias = Literal["input", "result", "output", "reasoning"]
"""A user's message, what a call gave, an answer with its calls, or what comes before it."""

Verdict: TypeAlias = Literal["pass", "violation", "failed"]
"""Whether the policy is kept or violated; "failed" where the classifier gave no label."""

_NOUNS = {
    "input": "the message",
    "result": "the result",
    "output": "the answer",
    "reasoning": "the reasoning",
}
_SHOWN = 80  # characters of a category


@dataclass(frozen=True)
class GuardEvent:
    """What a guard found of a text.

    category: of the policy, as the classifier names it, or "". reason: of the label, or why there
    is none. text: what was judged. blocked: whether it goes no further.
    """

    what: What
    label: Verdict
    category: str
    reason: str
    text: str
    blocked: bool

    @property
    def line(self) -> str:
        """What stands in place of a text that is blocked. It quotes nothing of a result, which the
        model would read."""
        if self.label == "failed":
            return f"[blocked: {self.noun} could not be judged]"
        category = " ".join(self.category.split())[:_SHOWN]
        named = f" ({category})" if category and self.what != "result" else ""
        return f"[blocked: {self.noun} violates the policy{named}]"

    @property
    def noun(self) -> str:
        """What was judged, in words."""
        return _NOUNS[self.what]
