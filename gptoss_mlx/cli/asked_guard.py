"""The guard that a command puts before and behind the model: its options, and what it opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gptoss_mlx.cli.opening import open_with_bar
from gptoss_mlx.models.names import full_name

if TYPE_CHECKING:
    from gptoss_mlx.engine.engine import Engine
    from gptoss_mlx.tools.guard.guard import Fail, Guard
    from gptoss_mlx.tools.guard.verdict import GuardEvent

_F = TypeVar("_F", bound=Callable[..., Any])
_SHARED = ("backend", "device", "dtype", "threads")  # settings of both models

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
