"""A page: a text in numbered lines of at most 80 characters, with numbered links."""

from __future__ import annotations

import re
import textwrap
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from gptoss_mlx.tools.browser.plain import one_line

WIDTH = 80
"""Characters in a line, as in the pages that the model was trained on."""

TITLE_LIMIT = 200
URL_LIMIT = 1024
"""Characters of a URL that are shown, as in training."""

SOURCE = "view-source:"
"""What the URL of a page begins with that shows the file itself."""

LINK = re.compile(r"【\d+†([^†】]*)(?:†[^】]*)?】")
"""The mark of a link in a text, its first group the link's text. It may be wrapped."""

_LONG = 16384  # characters; wrapping takes time quadratic in the length of a word

_WRAPPER = textwrap.TextWrapper(WIDTH, replace_whitespace=False, drop_whitespace=False)


@dataclass(frozen=True)
class Link:
    """Where a link leads. offset: characters into that page's text, or None for its beginning."""

    url: str
    title: str = ""
    offset: int | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Origin:
    """Where a line of search results or matches comes from. line: its number there, if any."""

    link: Link
    line: int | None = None


@dataclass(frozen=True)
class Page:
    """What the model sees of a document, a web page, search results or matches.

    text: plain, without tabs. shown: the URL as the model sees it; "" for search results. origins:
    of the lines of search results and matches, by number.
    """

    url: str
    title: str
    text: str
    shown: str
    links: Mapping[int, Link] = field(default_factory=dict)
    kind: Literal["document", "results", "matches"] = "document"
    file: Path | None = None
    origins: Mapping[int, Origin] = field(default_factory=dict)

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The text's lines, wrapped; those of one line of the text give it when they are joined."""
        return tuple(piece for pieces in self._wrapped for piece in pieces)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The offset of each line in the text."""
        lengths: list[int] = []
        for pieces in self._wrapped:
            lengths += map(len, pieces)
            lengths[-1] += 1  # the newline
        return (0, *accumulate(lengths[:-1]))

    @cached_property
    def _wrapped(self) -> list[list[str]]:
        return [_wrap(line) for line in self.text.split("\n")]

    def line_at(self, offset: int) -> int:
        """The number of the line that holds the character at `offset`."""
        return max(0, bisect_right(self.starts, max(0, offset)) - 1)


def document_page(
    url: str,
    title: str,
    body: str,
    links: Mapping[int, Link] | None = None,
    file: Path | None = None,
) -> Page:
    """The page of a document: its URL, then its body, which is plain but for its links' marks."""
    shown = shown_url(url)
    title = one_line(title, TITLE_LIMIT) or one_line(domain(url) or shown, TITLE_LIMIT)
    text = head(url) + body.expandtabs(8)
    return Page(url, title, text, shown, links or {}, file=file)


def head(url: str) -> str:
    """What a page's text begins with."""
    return f"\nURL: {one_line(url, URL_LIMIT)}\n"


def shown_url(url: str) -> str:
    """A URL as the model reads it: unquoted, in one line."""
    return one_line(unquote(url) if "://" in url else url, URL_LIMIT)


def domain(url: str) -> str:
    """The host and port of a URL; "" if it has none."""
    try:
        return urlsplit(url).netloc
    except ValueError:  # such as a broken IPv6 address
        return ""


def _wrap(line: str) -> list[str]:
    if len(line) <= WIDTH:
        return [line]
    pieces = [line[begin : begin + _LONG] for begin in range(0, len(line), _LONG)]
    return [wrapped for piece in pieces for wrapped in _WRAPPER.wrap(piece)]
