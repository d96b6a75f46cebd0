"""The guard: it judges texts by a classifier, and says which are blocked.

A classifier that fails, in whatever way, gives no label: then a guard that fails closed blocks the
text, and one that fails open lets it pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from gptoss_mlx.engine.options import Message
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
            return verdict_of(what, text, self.classify(what, text, cancel))
        except Exception as error:  # of any kind: what was not judged has not passed
            return verdict_without(what, text, error, self.fail)


def verdict_of(what: What, text: str, label: Label) -> GuardEvent:
    """The verdict that a label is."""
    verdict: Verdict = "violation" if label.violation else "pass"
    return GuardEvent(what, verdict, label.category, label.reason, text, label.violation)


def verdict_without(what: What, text: str, error: Exception, fail: Fail) -> GuardEvent:
    """The verdict where a classifier gave no label but an error."""
    why = str(error)
    if not isinstance(error, ClassifierError):
        why = f"{type(error).__name__}: {error}"
    outcome = "blocked" if fail == "closed" else "let pass"
    reason = f"{why} (fails {fail}: {outcome})"
    return GuardEvent(what, "failed", "", reason, text, fail == "closed")


def turn_text(texts: Iterable[str], calls: Iterable[tuple[str, str]]) -> str:
    """What is judged of a turn of the model's: what it says, then its calls (name, arguments)."""
    said = [text for text in texts if text.strip()]
    return "\n\n".join([*said, *(f"[a call of {name}]\n{given}" for name, given in calls)])


def message_text(message: Message) -> str:
    """The text of a message, whose content may be in parts."""
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        content = "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""
