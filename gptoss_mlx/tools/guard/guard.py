"""The guard: it judges texts by a classifier, and says which are blocked.

A classifier that fails, in whatever way, gives no label: then a guard that fails closed blocks the
text, and one that fails open lets it pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from gptoss_mlx.tools.guard.verdict import GuardEvent, Verdict, What
from gptoss_mlx.tools.tool import never

Fail: TypeAlias = Literal["closed", "open"]


@dataclass(frozen=True)
class Label:
    """What a classifier says of a text. category: of the policy, or "". reason: in a sentence."""

    violation: bool
    category: str = ""
    reason: str = ""


class ClassifierError(Exception):
    """A classifier that gives no label; the message says why."""


class Classifier(Protocol):
    def __call__(self, what: What, text: str, cancel: Callable[[], bool]) -> Label:
        """The label of a text. cancel: asked while it takes long; True ends it. Raises
        ClassifierError."""
        ...


@dataclass(frozen=True)
class Guard:
    """classify: gives the labels. fail: what becomes of a text without one."""

    classify: Classifier
    fail: Fail = "closed"

    def judge(self, what: What, text: str, cancel: Callable[[], bool] = never) -> GuardEvent:
        """The verdict on a text."""
        try:
            label = self.classify(what, text, cancel)
        except ClassifierError as error:
            return self._failed(what, text, str(error))
        except Exception as error:  # of any kind: what was not judged has not passed
            return self._failed(what, text, f"{type(error).__name__}: {error}")
        verdict: Verdict = "violation" if label.violation else "pass"
        return GuardEvent(what, verdict, label.category, label.reason, text, label.violation)

    def _failed(self, what: What, text: str, why: str) -> GuardEvent:
        outcome = "blocked" if self.fail == "closed" else "let pass"
        reason = f"{why} (fails {self.fail}: {outcome})"
        return GuardEvent(what, "failed", "", reason, text, self.fail == "closed")
