"""One encoding for all tests of the browser, and a source whose pages a test writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from gptoss_mlx.harmony import Encoding
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.page import Page, document_page
from gptoss_mlx.tools.browser.source import BrowsingError, Found, Hit


@pytest.fixture(scope="session")
def encoding() -> Encoding:
    return Encoding()


class Shelf:
    """A source of pages in memory. hits: what every search finds."""

    is_remote = True

    def __init__(self, pages: Mapping[str, Page], hits: tuple[Hit, ...] = ()) -> None:
        self.pages, self.hits = dict(pages), hits
        self.notes: tuple[str, ...] = ()
        self.fetched: list[str] = []

    def search(self, query: str, count: int) -> Found:
        return Found(self.hits[:count], self.notes)

    def fetch(self, url: str, as_source: bool = False) -> Page:
        self.fetched.append(url)
        if url not in self.pages:
            raise BrowsingError(f"No contents returned for {url}")
        return self.pages[url]

    def close(self) -> None:
        raise AssertionError("a source is its maker's to close")


def shelf_of(**texts: str) -> Shelf:
    """Pages https://NAME.test/ with a text each, which are also what a search finds."""
    pages = {f"https://{name}.test/": text for name, text in texts.items()}
    return Shelf(
        {url: document_page(url, url[8:-6].title(), text) for url, text in pages.items()},
        tuple(Hit(url, url[8:-6].title(), url[8:-1], text[:40]) for url, text in pages.items()),
    )


@pytest.fixture
def browse(encoding: Encoding) -> Callable[..., BrowserTool]:
    """(name=text, ...) -> a browser of such pages."""

    def make(view_tokens: int = 1024, **texts: str) -> BrowserTool:
        return BrowserTool(shelf_of(**texts), encoding, view_tokens=view_tokens)

    return make
