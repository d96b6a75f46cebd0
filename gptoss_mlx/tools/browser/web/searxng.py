"""SearXNG as a source of pages: its results by its JSON API, and the pages that they lead to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlencode

from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.tools.browser.source import BrowsingError, Found
from gptoss_mlx.tools.browser.web.client import Client, checked_url
from gptoss_mlx.tools.browser.web.search_address import hit_of
from gptoss_mlx.tools.browser.web.website import WebPages


class SearXNG(WebPages):
    """A SearXNG server that a person named, and the public web.

    url: of the server, such as "http://127.0.0.1:8888"; it may be a local one, while pages may not.
    Raises OptionError.
    """

    def __init__(self, url: str, client: Client | None = None) -> None:
        try:
            self._url = checked_url(url).geturl().partition("?")[0].rstrip("/")
        except BrowsingError as error:
            raise OptionError(f"the search URL is {shown(url)}: {error}") from error
        super().__init__(client)

    def search(self, query: str, count: int) -> Found:
        asked = urlencode({"q": query, "format": "json"})
        response = self._client.get(
            f"{self._url}/search?{asked}", trusted=True, accept="application/json"
        )
        if response.status == 403:
            raise BrowsingError(
                "The search server refuses JSON: its settings.yml must list json in search.formats."
            )
        if response.status != 200:
            raise BrowsingError(f"The search server answered {response.status}.")
        try:
            answer = json.loads(response.body)
        except (ValueError, RecursionError) as error:
            raise BrowsingError("The search server's answer is not JSON.") from error
        if not isinstance(answer, Mapping) or not isinstance(answer.get("results"), list):
            raise BrowsingError("The search server's answer has no results.")
        hits = [*filter(None, map(hit_of, answer["results"]))]
        return Found(tuple(hits[:count]), () if hits else _silent(answer))


def _silent(answer: Mapping[str, object]) -> tuple[str, ...]:
    """What SearXNG says of the engines that did not answer."""
    engines = answer.get("unresponsive_engines")
    if not isinstance(engines, list) or not engines:
        return ()
    named = [" ".join(map(str, each)) if isinstance(each, list) else str(each) for each in engines]
    return (f"these search engines did not answer: {', '.join(named)}",)
