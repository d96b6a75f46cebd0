"""A search address as a source of pages: a URL with `{query}` in it, which gives results as JSON or
as a page of links, and the pages that they lead to."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from urllib.parse import quote, urlsplit

from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.tools.browser.page import LINK, Link, domain
from gptoss_mlx.tools.browser.source import BrowsingError, Found, Hit
from gptoss_mlx.tools.browser.web.client import Client, Response, checked_url
from gptoss_mlx.tools.browser.web.website import WebPages, extracted

QUERY = "{query}"
"""What the words that are searched stand in the place of."""

_ACCEPT = "application/json,text/html;q=0.9"
_URLS = ("url", "link", "href")
_TITLES = ("title", "name")
_SNIPPETS = ("content", "snippet", "description", "excerpt", "summary", "text")
_NUMBER = re.compile(r"【(\d+)†")
_SUGGESTED = 4  # parts of OpenSearch's suggestions: the query, titles, descriptions, URLs


class SearchAddress(WebPages):
    """An address that a person named, and the public web.

    url: such as "https://en.wikipedia.org/w/index.php?search={query}"; it may be a local one, while
    pages may not. Raises OptionError.
    """

    def __init__(self, url: str, client: Client | None = None) -> None:
        try:
            places = {checked_url(url.replace(QUERY, word)).netloc for word in ("a", "b")}
        except BrowsingError as error:
            raise OptionError(f"the search URL is {shown(url)}: {error}") from error
        if QUERY not in url or len(places) > 1:
            raise OptionError(f"the search URL is {shown(url)}: {QUERY} must stand behind its host")
        super().__init__(client)
        self._url = url

    def search(self, query: str, count: int) -> Found:
        words = quote(query, safe="", errors="replace")
        response = self._client.get(self._url.replace(QUERY, words), trusted=True, accept=_ACCEPT)
        if response.status != 200:
            raise BrowsingError(f"The search server answered {response.status}.")
        found = dict[str, Hit]()
        for hit in _hits(response):
            found.setdefault(hit.url, hit)
        return Found(tuple(found.values())[:count])


def _hits(response: Response) -> Iterator[Hit]:
    """Raises BrowsingError."""
    if response.kind.endswith("json"):
        try:
            answer = json.loads(response.body)
        except (ValueError, RecursionError) as error:
            raise BrowsingError("The search server's answer is not JSON.") from error
        return filter(None, map(hit_of, _results(answer)))
    document = extracted(response)
    return _linked(document.text, document.links, response.url)


def _results(answer: object) -> Sequence[object]:
    """The first list of results in JSON, the outermost first."""
    if isinstance(answer, list) and len(answer) == _SUGGESTED:
        parts = [part for part in answer[1:] if isinstance(part, list)]
        if len(parts) == _SUGGESTED - 1:
            titles, snippets, urls = parts
            rows = zip_longest(titles, snippets, urls)
            return [dict(zip(("title", "content", "url"), row, strict=True)) for row in rows]
    inner = deque([answer])
    while inner:
        value = inner.popleft()
        if isinstance(value, list) and any(map(hit_of, value)):
            return value
        inner += value.values() if isinstance(value, Mapping) else ()
        inner += value if isinstance(value, list) else ()
    return ()


def hit_of(result: object) -> Hit | None:
    """A result as a hit, if it is one of a web page."""
    if not isinstance(result, Mapping):
        return None
    url = _text(result, _URLS)
    if not url.startswith(("http://", "https://")) or not domain(url):
        return None
    return Hit(url, _text(result, _TITLES), domain(url), _text(result, _SNIPPETS))


def _text(result: Mapping[str, object], names: Sequence[str]) -> str:
    values = (result.get(name) for name in names)
    return next((value for value in values if isinstance(value, str) and value), "")


def _linked(text: str, links: Mapping[int, Link], base: str) -> Iterator[Hit]:
    """The links of a page of results, each with the text up to the next one.

    A page that leads to other sites is a search engine's, whose own links are no results; one that
    does not is a search of its own site.
    """
    marks = list(LINK.finditer(text))
    hits: list[Hit] = []
    for mark, end in zip(marks, [*(m.start() for m in marks[1:]), len(text)], strict=True):
        number = _NUMBER.match(mark[0])
        link = links.get(int(number[1])) if number else None
        if link is not None and _page_of(link.url) != _page_of(base):
            lines = [line.strip(" *#") for line in text[mark.end() : end].split("\n")]
            hits.append(Hit(link.url, mark[1], domain(link.url), " ".join(filter(None, lines))))
    elsewhere = [hit for hit in hits if hit.place != domain(base)]
    yield from elsewhere or hits


def _page_of(url: str) -> tuple[str, str]:
    """Without what is asked of it, such as further results."""
    parts = urlsplit(url)
    return parts.netloc, parts.path
