"""A tool as the agent's loop sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Output:
    """What a call gave.

    text: what the model reads; control tokens in it are text. files: files that the call made, for
    a person. failed: whether the text says what went wrong, which the model may mend.
    """

    text: str
    files: tuple[Path, ...] = ()
    failed: bool = False


class Tool(Protocol):
    """A namespace of calls.

    A tool belongs to one conversation, and is called by one thread at a time. What a model wrote
    wrongly is an `Output` that failed; an exception means that the tool itself is broken.
    """

    @property
    def name(self) -> str:
        """The recipient's first part: "python", "browser", or "functions" and a server's name."""
        ...

    def call(self, recipient: str, text: str) -> Output:
        """Run the call that a model addressed to `recipient`. text: the message's content."""
        ...

    def close(self) -> None:
        """Free what the tool holds. Files that it has given stay."""
        ...
