"""The page stack: every page shown in a conversation, numbered by its cursor."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_mlx.tools.browser.page import Page
from gptoss_mlx.tools.browser.source import BrowsingError


@dataclass(frozen=True)
class Shown:
    """A page, and which of its lines were shown: those from `first` up to, not including, `end`."""

    page: Page
    first: int
    end: int


class PageStack:
    """Each call that shows something adds to it; nothing is ever taken off."""

    def __init__(self) -> None:
        self._shown: list[Shown] = []

    def __len__(self) -> int:
        return len(self._shown)

    def add(self, shown: Shown) -> None:
        """The next cursor is its number."""
        self._shown.append(shown)

    def get(self, cursor: int) -> Shown | None:
        """What was shown under a cursor, from 0; None if there is none."""
        return self._shown[cursor] if 0 <= cursor < len(self._shown) else None

    def has_shown(self, page: Page, first: int, last: int) -> bool:
        """Whether every line of a page from `first` to `last` was shown under some cursor."""
        views = [shown for shown in self._shown if shown.page is page]
        return all(
            any(view.first <= line < view.end for view in views) for line in range(first, last + 1)
        )

    def page(self, cursor: int) -> Page:
        """The page of a cursor; a negative one counts from the last page. Raises BrowsingError."""
        count = len(self._shown)
        if not count:
            raise BrowsingError("No pages to access! Use `search` first, or `open` with a URL.")
        found = self.get(cursor + count if cursor < 0 else cursor)
        if found is None:
            raise BrowsingError(
                f"Cursor `{cursor}` is out of range. Available cursor indices: [0 - {count - 1}]."
            )
        return found.page

    def opened(self, url: str) -> Page | None:
        """The page of a URL as it was shown last."""
        pages = (shown.page for shown in reversed(self._shown))
        return next((page for page in pages if page.url == url), None)
