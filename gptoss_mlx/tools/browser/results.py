"""Search results as a page: a list of numbered links, as the model was trained to read it."""

from __future__ import annotations

from dataclasses import replace

from gptoss_mlx.tools.browser.page import TITLE_LIMIT, Link, Origin, Page, head
from gptoss_mlx.tools.browser.plain import one_line
from gptoss_mlx.tools.browser.source import Found, Hit

SNIPPET_LIMIT = 400
PLACE_LIMIT = 120
NOTE_LIMIT = 300
"""Characters shown."""


def results_page(query: str, found: Found) -> Page:
    """The page of a search; its title is the query, and it has no URL."""
    links: dict[int, Link] = {}
    numbers: dict[tuple[str, int | None], int] = {}
    lines: list[tuple[str, Link | None]] = []
    for hit in found.hits:
        title = link_text(hit.title, TITLE_LIMIT) or link_text(hit.place, TITLE_LIMIT) or hit.url
        link = Link(hit.url, title, hit.offset, hit.file)
        number = numbers.setdefault((hit.url, hit.offset), len(numbers))
        links.setdefault(number, link)
        lines.append((_item(number, title, hit), link))
    if not lines:
        lines.append(("No results. Search for other words, or for fewer.", None))
    if found.notes:
        lines.append(("", None))
    lines += [(f"Note: {one_line(note, NOTE_LIMIT)}", None) for note in found.notes]
    return _page(query, links, lines)


def link_text(text: str, limit: int) -> str:
    """A text as it may stand in a link: in one line, without the link's own marks."""
    return one_line(text, limit).replace("†", "‡")


def _item(number: int, title: str, hit: Hit) -> str:
    place = link_text(hit.place, PLACE_LIMIT)
    mark = f"【{number}†{title}†{place}】" if place else f"【{number}†{title}】"
    return f"  * {mark} {one_line(hit.snippet, SNIPPET_LIMIT)}".rstrip()


def _page(query: str, links: dict[int, Link], lines: list[tuple[str, Link | None]]) -> Page:
    start = f"{head('')}# Search Results\n\n"
    text = start + "\n".join(line for line, _ in lines)
    page = Page("", one_line(query, TITLE_LIMIT), text, "", links, kind="results")
    origins: dict[int, Origin] = {}
    offset = len(start)
    for line, link in lines:
        if link is not None:
            wrapped = range(page.line_at(offset), page.line_at(offset + len(line)) + 1)
            origins |= dict.fromkeys(wrapped, Origin(link))
        offset += len(line) + 1
    return replace(page, origins=origins)
