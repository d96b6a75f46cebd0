"""The text guard: judges what requests bring and what models answer, and remembers the labels."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.server.labels import Labels
from gptoss_mlx.tools.guard.guard import (
    ClassifierError,
    Fail,
    Label,
    verdict_of,
    verdict_without,
)
from gptoss_mlx.tools.guard.verdict import GuardEvent, Verdict, What

logger = logging.getLogger(__name__)

_PASSED = Label(violation=False)


class AsyncClassifier(Protocol):
    async def __call__(self, runner: Runner, what: What, text: str) -> Label:
        """The label of a text. runner: of the model that judges. Ends when it is cancelled. Raises
        ClassifierError."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class TextGuard:
    """classify: gives the labels. policy: its text. fail: what becomes of a text without a label.

    judged: how often a text got each label. blocked: how many of each kind went no further. Used in
    one event loop.
    """

    def __init__(self, classify: AsyncClassifier, policy: str, *, fail: Fail = "closed") -> None:
        self._classify, self.policy, self._fail = classify, policy, fail
        self.labels = Labels()
        self.judged: Counter[tuple[What, Verdict]] = Counter()
        self.blocked: Counter[What] = Counter()

    async def judge(self, runner: Runner, what: What, texts: Sequence[str]) -> GuardEvent:
        """The verdict on texts, judged as one; each of them is remembered where it passes."""
        text, judge = "\n\n".join(texts), runner.engine.name
        label = self.labels.find(judge, what, text)
        if label is not None:
            event = verdict_of(what, text, label)
        else:
            event = await self._ask(runner, what, text)
            self.judged[what, event.label] += 1
        if event.label == "pass":
            self.remember(judge, what, texts)
        self.blocked[what] += event.blocked
        return event

    def known(self, runner: Runner, what: What, text: str) -> Label | None:
        """What was found of a text before."""
        return self.labels.find(runner.engine.name, what, text)

    def remember(self, judge: str, what: What, texts: Sequence[str]) -> None:
        """Texts that need not be judged again."""
        for text in texts:
            self.labels.keep(judge, what, text, _PASSED)

    def close(self) -> None:
        self._classify.close()

    async def _ask(self, runner: Runner, what: What, text: str) -> GuardEvent:
        try:
            label = await self._classify(runner, what, text)
        except ClassifierError as error:
            logger.warning("guard: a text was not judged (%s)", what)
            return verdict_without(what, text, error, self._fail)
        except Exception:  # of any kind: what was not judged has not passed
            logger.exception("guard: the classifier failed")
            # The error's own text may name files of this machine.
            unknown = ClassifierError("the classifier failed: it is in the server's log")
            return verdict_without(what, text, unknown, self._fail)
        self.labels.keep(runner.engine.name, what, text, label)
        return verdict_of(what, text, label)


def call_text(name: str, arguments: str) -> str:
    """A call by which it is known again: clients write the JSON of its arguments anew."""
    try:
        value = json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        value = arguments.strip()
    return f"{name} {value}"
