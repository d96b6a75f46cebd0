"""A tool as the agent's loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Outcome:
    """What a call gave.

    text: what the model reads; control tokens in it are text. files: files that the call made, for
    a person. failed: whether the text says what went wrong, which the model may mend.
    """

    text: str
    files: tuple[Path, ...] = ()
    failed: bool = False


def never() -> bool:
    """The `cancel` of a call that nobody ends."""
    return False


class Tool(Protocol):
    """A namespace of calls.

    A tool belongs to one conversation, and is called by one thread at a time. What a model wrote
    wrongly is an `Outcome` that failed; an exception means that the tool itself is broken.
    """

    @property
    def name(self) -> str:
        """What a rule for its calls names: "python", "browser", or an MCP server's name."""
        ...

    @property
    def offers(self) -> Sequence[Mapping[str, object]]:
        """What the model is told of, as `Engine.stream` takes its tools; asked before each turn."""
        ...

    def call(self, recipient: str, text: str, cancel: Callable[[], bool] = never) -> Outcome:
        """Run the call that a model addressed to `recipient`.

        text: the message's content. cancel: asked while a call takes long; True ends it.
        """
        ...

    def close(self) -> None:
        """Free what the tool holds. Files that it has given stay."""
        ...
