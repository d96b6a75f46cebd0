"""The browser: search, open and find over a source of pages, with a stack of what was shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.encoding import Encoding
from gptoss_mlx.tools.browser.arguments import FindCall, OpenCall, SearchCall, read_call
from gptoss_mlx.tools.browser.citations import CitationReader, Cited, Written, as_mark
from gptoss_mlx.tools.browser.find import find_in
from gptoss_mlx.tools.browser.page import SOURCE, URL_LIMIT, Link, Page
from gptoss_mlx.tools.browser.plain import one_line, plain
from gptoss_mlx.tools.browser.results import results_page
from gptoss_mlx.tools.browser.source import BrowsingError, PageSource
from gptoss_mlx.tools.browser.stack import PageStack
from gptoss_mlx.tools.browser.view import view, written
from gptoss_mlx.tools.tool import Outcome, never

VIEW_TOKENS = 1024
"""Tokens of a view, as in training."""

MOST_TOKENS = 8 * VIEW_TOKENS
"""Tokens of a view whose number of lines the model asks for."""

MOST_RESULTS = 20
_ABOVE = 4  # lines shown above a passage, as in training


class BrowserTool:
    """The `browser` namespace of one conversation.

    source: what is searched and opened; it stays open, since conversations may share it. encoding:
    counts the tokens of a view. view_tokens: of a view, at least 1. Raises OptionError.
    """

    name = "browser"

    def __init__(
        self, source: PageSource, encoding: Encoding, *, view_tokens: int = VIEW_TOKENS
    ) -> None:
        if view_tokens < 1:
            raise OptionError(f"view_tokens is {shown(view_tokens)}, but must be 1 or more")
        self._source, self._encoding, self._tokens = source, encoding, view_tokens
        self._stack = PageStack()
        self._told: tuple[str, ...] = ()  # notes of the last search

    @property
    def offers(self) -> Sequence[Mapping[str, object]]:
        return ({"type": "browser"},)

    def call(self, recipient: str, text: str, cancel: Callable[[], bool] = never) -> Outcome:
        """As `Tool.call`; a request ends by its own limit of time."""
        try:
            call = read_call(recipient, text)
            if isinstance(call, SearchCall):
                return Outcome(self._search(call))
            return Outcome(self._find(call) if isinstance(call, FindCall) else self._open(call))
        except BrowsingError as error:
            return Outcome(plain(str(error)), failed=True)

    def close(self) -> None:
        """The source is its maker's to close."""

    def page(self, cursor: int = -1) -> Page | None:
        """The page that was shown under a cursor, last where it is negative; None if none was."""
        try:
            return self._stack.page(cursor)
        except BrowsingError:
            return None

    def cite(self, answer: str) -> Cited:
        """An answer's citation marks, resolved against the pages that were shown."""
        reader = self.citations()
        return reader.push(answer) + reader.flush()

    def citations(self, written: Written = as_mark) -> CitationReader:
        """A reader of an answer that comes in deltas. written: what its text has for a mark."""
        return CitationReader(self._stack, written)

    def _search(self, call: SearchCall) -> str:
        found = self._source.search(call.query, min(call.topn, MOST_RESULTS))
        if found.notes == self._told:
            found = replace(found, notes=())
        else:
            self._told = found.notes
        return self._show(results_page(call.query, found))

    def _find(self, call: FindCall) -> str:
        return self._show(find_in(self._stack.page(call.cursor), call.pattern))

    def _open(self, call: OpenCall) -> str:
        page, offset = self._target(call)
        first = call.loc
        if first < 0:
            line = 0 if offset is None else page.line_at(offset)
            first = line - _ABOVE if line > _ABOVE else line
        return self._show(page, first, call.num_lines)

    def _target(self, call: OpenCall) -> tuple[Page, int | None]:
        """The page that a call opens, and the offset of the passage in it."""
        if isinstance(call.id, str):
            return self._fetch(call.id, call.view_source), None
        page = self._stack.page(call.cursor)
        if call.id is None:
            if call.view_source and page.kind == "document":
                return self._fetch(page.url, True), None
            return page, None
        link = page.links.get(call.id)
        if link is None:
            raise BrowsingError(f"Invalid link id `{call.id}`. {_valid_ids(page)}")
        return self._linked(link, call.view_source)

    def _linked(self, link: Link, as_source: bool) -> tuple[Page, int | None]:
        known = self._stack.opened(link.url) if self._source.is_remote and not as_source else None
        page = known or self._fetch(link.url, as_source)
        return page, None if as_source else link.offset

    def _fetch(self, url: str, as_source: bool) -> Page:
        is_source = as_source or url.startswith(SOURCE)
        try:
            return self._source.fetch(url.removeprefix(SOURCE), is_source)
        except BrowsingError as error:
            raise BrowsingError(
                f"Error fetching URL `{one_line(url, URL_LIMIT)}`: {error}"
            ) from error

    def _show(self, page: Page, first: int = 0, count: int = -1) -> str:
        last = len(page.lines) - 1
        if first > last:
            raise BrowsingError(
                f"Invalid location parameter: `{first}`. Cannot exceed page maximum of {last}."
            )
        most = max(MOST_TOKENS, self._tokens)
        shown_part = view(page, first, count, self._encoding, self._tokens, most)
        self._stack.add(shown_part)
        return written(len(self._stack) - 1, shown_part)


def _valid_ids(page: Page) -> str:
    count = len(page.links)
    return f"This page has the ids 0 to {count - 1}." if count else "This page has no links."
