"""Classifiers that say what a test tells them to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.server.text_guard import TextGuard
from gptoss_mlx.tools.guard.guard import Fail, Guard, Label
from gptoss_mlx.tools.guard.verdict import What
from gptoss_mlx.tools.tool import never
from tests.support.scripted_model import FINAL


class Judge:
    """Finds a violation in every text with `vile` in it. judged: what it was asked, in order.

    error: raised in place of a label.
    """

    def __init__(self, word: str = "vile", error: Exception | None = None) -> None:
        self.judged: list[tuple[What, str]] = []
        self._word, self._error = word, error

    def __call__(self, what: What, text: str, cancel: Callable[[], bool]) -> Label:
        self.judged.append((what, text))
        if self._error is not None:
            raise self._error
        return Label(self._word in text, "R1", "It says so.")

    def guard(self, fail: Fail = "closed") -> Guard:
        return Guard(self, fail)


class ServedJudge(Judge):
    """The same in a server. holding: whether it waits, for ever, at every text with `vile` in it;
    began: it does, or has been cancelled."""

    def __init__(self, word: str = "vile", error: Exception | None = None, holding: bool = False):
        super().__init__(word, error)
        self.holding = holding
        self.events: list[str] = []

    async def __call__(self, runner: Runner, what: What, text: str) -> Label:  # type: ignore[override]
        if self.holding and self._word in text:
            self.events.append("began")
            try:
                await asyncio.Event().wait()
            finally:
                self.events.append("ended")
        return super().__call__(what, text, never)

    def close(self) -> None:
        self.events.append("closed")

    def served(self, fail: Fail = "closed") -> TextGuard:
        return TextGuard(self, "R1: say nothing vile.", fail=fail)


def labelled(violation: Any, category: Any = None, rationale: Any = "") -> str:
    """What a model writes as its label."""
    value = {"violation": violation, "policy_category": category, "rationale": rationale}
    return f"{FINAL}{json.dumps(value)}<|return|>"
