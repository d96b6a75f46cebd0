"""Find in a page: the lines in which a pattern begins, as a page of matches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

from gptoss_mlx.tools.browser.page import LINK, TITLE_LIMIT, Link, Origin, Page
from gptoss_mlx.tools.browser.plain import one_line, plain
from gptoss_mlx.tools.browser.source import BrowsingError

MOST_MATCHES = 50
MATCH_LINES = 4
"""Lines shown of a match, as in training; a match that begins in them is not shown again."""


def find_in(page: Page, pattern: str) -> Page:
    """The matches of a pattern, in any case, as a page. Raises BrowsingError for other pages.

    Links count as their texts. A match may go on in the next line where a line was wrapped.
    """
    if page.kind != "document":
        raise BrowsingError(
            "Cannot run `find` on search results page or find results page."
            " Give the `cursor` of an opened page."
        )
    pattern = plain(pattern).expandtabs(8).lower()
    if not pattern.strip():
        raise BrowsingError("`pattern` is empty. Give the text to look for.")
    lines = _without_links(page)
    links: dict[int, Link] = {}
    text: list[str] = []
    origins: dict[int, Origin] = {}
    for number, line in enumerate(_shown(lines, _matching(page, lines, pattern))):
        link = Link(page.url, page.title, page.starts[line], page.file)
        links[number] = link
        body = lines[line : line + MATCH_LINES]
        origins |= {len(text) + 1 + i: Origin(link, line + i) for i in range(len(body))}
        text += [f"# 【{number}†match at L{line}】", *body, ""]
    if not text:
        text = [f"No `find` results for pattern: `{one_line(pattern, TITLE_LIMIT)}`", ""]
    named = one_line(pattern, TITLE_LIMIT)
    return Page(
        url=f"{page.url}/find?pattern={quote(pattern)}",
        title=f"Find results for text: `{named}` in `{page.title}`",
        text="\n".join(text[:-1]),
        shown=f"{page.shown}/find?pattern={named}",
        links=links,
        kind="matches",
        file=page.file,
        origins=origins,
    )


def _without_links(page: Page) -> list[str]:
    """The page's lines with the texts of links for the links, those in two lines included."""
    return LINK.sub(_text_of, "\n".join(page.lines)).split("\n")


def _text_of(link: re.Match[str]) -> str:
    """A link's text, and the breaks between lines that stood in the rest of the link."""
    return link[1] + "\n" * (link[0].count("\n") - link[1].count("\n"))


def _matching(page: Page, lines: list[str], pattern: str) -> Iterator[int]:
    """The lines in which a match begins, in order; a line may come twice."""
    is_wrapped = [page.text[start - 1] != "\n" for start in page.starts[1:]] + [False]
    begin = 0
    for end, wrapped in enumerate(is_wrapped, 1):
        if wrapped:
            continue
        paragraph = "".join(lines[begin:end]).lower()
        if pattern in paragraph:
            yield from _starts(lines[begin:end], paragraph, pattern, begin)
        begin = end


def _starts(lines: list[str], paragraph: str, pattern: str, first: int) -> Iterator[int]:
    """The lines of a paragraph in which a match begins."""
    ends, length = list[int](), 0
    for line in lines:
        length += len(line.lower())
        ends.append(length)
    at, number = paragraph.find(pattern), 0
    while at >= 0:
        while ends[number] <= at:
            number += 1
        yield first + number
        at = paragraph.find(pattern, ends[number])


def _shown(lines: list[str], matching: Iterator[int]) -> Iterator[int]:
    """Matching lines that the match before does not show already, MOST_MATCHES at most."""
    count = after = 0
    for line in matching:
        if line < after:
            continue
        yield line
        count, after = count + 1, line + MATCH_LINES
        if count == MOST_MATCHES:
            return
