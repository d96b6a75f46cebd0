"""A source of pages behind the browser: what it finds and what it opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptoss_mlx.tools.browser.page import Page


class BrowsingError(Exception):
    """A call that gives no page. Its text is for the model: what is wrong, and what would work."""


@dataclass(frozen=True)
class Hit:
    """A search result.

    place: shown after the title, a domain or a file's path. offset: characters into the page's text
    at which what was found begins; None for the page's beginning.
    """

    url: str
    title: str
    place: str
    snippet: str
    offset: int | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Found:
    """What a search gave, best first. notes: for the model, such as what could not be searched."""

    hits: tuple[Hit, ...]
    notes: tuple[str, ...] = ()


class PageSource(Protocol):
    """What is searched and opened. Conversations may share one, each on a thread of its own."""

    @property
    def is_remote(self) -> bool:
        """Whether fetching is slow, so that a link to an opened page shows it as it was."""
        ...

    def search(self, query: str, count: int) -> Found:
        """The best `count` results or fewer. Raises BrowsingError."""
        ...

    def fetch(self, url: str, as_source: bool = False) -> Page:
        """The page of a link or a URL that the model wrote. as_source: the text of the file itself.

        Raises BrowsingError.
        """
        ...

    def close(self) -> None:
        """Free what the source holds."""
        ...
