"""The guard that a command puts before and behind the model: its options, and what it opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gptoss_mlx.cli.opening import open_with_bar
from gptoss_mlx.models.names import full_name
from gptoss_mlx.settings import Settings

if TYPE_CHECKING:
    from gptoss_mlx.engine.engine import Engine
    from gptoss_mlx.server.registry import Opener, ServedModel
    from gptoss_mlx.server.text_guard import TextGuard
    from gptoss_mlx.tools.guard.guard import Fail, Guard
    from gptoss_mlx.tools.guard.verdict import GuardEvent

_F = TypeVar("_F", bound=Callable[..., Any])
_SHARED = ("backend", "device", "dtype", "threads")  # settings of both models

JUDGE_CONTEXT = 16384
"""Tokens of a server's second model, which must leave room for the first. What is longer is judged
in parts."""

_OPTIONS = (
    click.option(
        "--guard",
        metavar="POLICY",
        type=click.Path(path_type=Path),
        help="File with a policy, under which what comes in and goes out is judged.",
    ),
    click.option(
        "--guard-model",
        metavar="MODEL",
        help="What judges, such as openai/gpt-oss-safeguard-20b; by default the model itself.",
    ),
    click.option(
        "--guard-fail",
        type=click.Choice(["closed", "open"]),
        help="Block what could not be judged, or let it pass; closed by default.",
    ),
)


def guard_options(command: _F) -> _F:
    """Give a click command every option that `take_guard` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class ServedGuard:
    """What a server has of a guard. texts: the guard; None for none. judge: what judges, None for
    each model itself. opener: of models, which refuses one that is to judge and cannot."""

    texts: TextGuard | None
    judge: ServedModel | None
    opener: Opener


@dataclass(frozen=True)
class AskedGuard:
    """What a person has asked for. policy: its text, "" for no guard. file: where it is from.
    model: what judges, None for the one that answers."""

    policy: str = ""
    file: Path | None = None
    model: str | None = None
    fail: Fail = "closed"

    def __bool__(self) -> bool:
        return bool(self.policy)

    @contextmanager
    def open(
        self, engine: Engine, settings: Mapping[str, Any], *, bar_shown: bool, after: float
    ) -> Iterator[Guard | None]:
        """The guard, until the block ends; None where none was asked for.

        engine: of the model that answers, opened with these settings; it judges too, unless another
        is to. Raises OptionError for a policy that the context cannot hold.
        """
        if not self:
            yield None
            return
        from gptoss_mlx.errors import OptionError
        from gptoss_mlx.tools.guard.guard import Guard
        from gptoss_mlx.tools.guard.policy import PolicyClassifier

        judge = engine
        if self.model is not None and full_name(self.model) != engine.name:
            shared = {name: value for name, value in settings.items() if name in _SHARED}
            judge = open_with_bar(self.model, shared, bar_shown=bar_shown, after=after)
        try:
            try:
                classify = PolicyClassifier(judge, self.policy)
            except OptionError as error:
                raise OptionError(f"{self.file}: {error}") from error
            yield Guard(classify, self.fail)
        finally:
            if judge is not engine:
                judge.close()

    def serve(self, entries: Sequence[ServedModel]) -> ServedGuard:
        """The guard of a server of these models. It opens nothing."""
        from gptoss_mlx.engine.engine import open_engine
        from gptoss_mlx.server.policy_judge import PolicyJudge, judging_opener
        from gptoss_mlx.server.text_guard import TextGuard

        if not self:
            return ServedGuard(None, None, open_engine)
        classify = PolicyJudge(self.policy)
        judge = None if self.model is None else _judge(self.model, entries)
        opener = judging_opener(open_engine, classify, judge, str(self.file))
        return ServedGuard(TextGuard(classify, self.policy, fail=self.fail), judge, opener)


def _judge(model: str, entries: Sequence[ServedModel]) -> ServedModel | None:
    """The model that judges: one that is served, or another; None for the only one that is."""
    from gptoss_mlx.server.facts import facts_of
    from gptoss_mlx.server.registry import ServedModel

    chosen = entries[0].settings
    served = [entry for entry in entries if entry.id == full_name(model)]
    if served:
        return None if len(entries) == 1 else served[0]
    shared = {name: getattr(chosen, name) for name in (*_SHARED, "memory", "parallel")}
    judge = ServedModel(model, replace(Settings(), **shared))
    most = facts_of(judge).context or JUDGE_CONTEXT
    judge.settings = replace(judge.settings, context=min(most, JUDGE_CONTEXT))
    return judge


def take_guard(given: dict[str, Any]) -> AskedGuard:
    """Take the guard's options out of a command's. Raises click.UsageError, and OptionError for a
    policy that cannot be read or is empty."""
    file, model, fail = given.pop("guard"), given.pop("guard_model"), given.pop("guard_fail")
    if file is None:
        for option, value in (("--guard-model", model), ("--guard-fail", fail)):
            if value is not None:
                raise click.UsageError(f"{option} is for --guard POLICY")
        return AskedGuard()
    from gptoss_mlx.tools.guard.policy import read_policy

    return AskedGuard(read_policy(file), file, model, fail or "closed")


def described(event: GuardEvent) -> str:
    """A note on what was blocked or not judged. It quotes nothing of a text that was blocked."""
    if event.label == "failed":
        return f"guard: {event.noun} was not judged: {event.reason}"
    named = f" ({event.category})" if event.category else ""
    return f"guard: {event.noun} is blocked: it violates the policy{named}"
