"""Search addresses with {query} in them, on a made-up Internet."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gptoss_mlx.errors import OptionError
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.source import BrowsingError
from gptoss_mlx.tools.browser.web.search_address import SearchAddress
from tests.tools.browser.web.conftest import Site, plainly, saying

Make = Callable[..., SearchAddress]
ONE = {"url": "https://a.test/1", "title": "One", "content": "About one."}
HITS = [("https://a.test/1", "One", "About one.")]


@pytest.fixture
def search(site: Site) -> Make:
    """An address of this answer, of a local server."""
    site.names["find.test"] = [["127.0.0.1"]]

    def make(body: Any, kind: str = "application/json", query: str = "?q={query}") -> SearchAddress:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        site.answers["/find"] = plainly(data, kind)
        return SearchAddress(site.url(f"/find{query}", "find.test"), site.client())

    return make


def found(source: SearchAddress, count: int = 10) -> list[tuple[str, str, str]]:
    hits = source.search("q", count).hits
    return [(hit.url, hit.title, hit.snippet.strip()) for hit in hits]


def test_words_are_put_in_their_place_and_results_opened(
    site: Site, search: Make, encoding: Encoding
) -> None:
    page = site.url("/one")
    site.answers["/one"] = plainly(b"<title>One</title><p>Its text.")
    source = search({"results": [{**ONE, "url": page}]}, query="?a=1&q={query}&b=2")
    tool = BrowserTool(source, encoding)
    result = tool.call("browser.search", '{"query": "what & a/b? \\ud800"}').text
    assert f"【0†One†public.test:{site.port}】 About one." in result.replace("\nL5: ", "")
    assert site.asked == ["/find?a=1&q=what%20%26%20a%2Fb%3F%20%EF%BF%BD&b=2"]
    assert "Its text." in tool.call("browser.open", '{"id": 0}').text


@pytest.mark.parametrize(
    "answer",
    [
        [ONE],
        {"tags": ["a", {"name": "b"}], "results": [ONE]},
        {
            "type": "search",
            "web": {"results": [ONE]},
            "more": {"results": [{"url": "https://b.t/"}]},
        },
        {"items": [{"link": ONE["url"], "title": "One", "snippet": "About one."}]},
        {"organic": [{"href": ONE["url"], "name": "One", "description": "About one."}, 7]},
        ["q", ["One"], ["About one."], [ONE["url"]]],
    ],
)
def test_the_forms_of_json_that_search_servers_give(search: Make, answer: Any) -> None:
    assert found(search(answer)) == HITS


def test_only_pages_of_the_web_are_results_and_each_is_one(search: Make) -> None:
    wrong = [{"url": "file:///etc/passwd"}, {"url": 5}, "text", None, {"title": "no url"}]
    assert found(search({"results": [*wrong, ONE, {**ONE, "title": "Again"}]})) == HITS
    assert found(search({"results": wrong})) == []
    assert len(found(search([{"url": f"https://a.test/{i}"} for i in range(9)]), 3)) == 3


def test_a_page_of_links_to_other_sites_is_its_results(search: Make) -> None:
    html = b"""<title>Find</title><a href="/about">About us</a> <a href="/find?q=q&page=2">Next</a>
    <ul><li><a href="https://a.test/1">One</a> About one.<li><a href="https://b.test/2">Two</a>
    <p>About two. <a href="https://a.test/1">One again</a></ul>"""
    assert found(search(html, "text/html")) == [
        *HITS,
        ("https://b.test/2", "Two", "About two."),
    ]


def test_a_page_of_links_of_its_own_site_is_a_search_of_it(site: Site, search: Make) -> None:
    html = b'<a href="/find?page=2">Next</a><p><a href="/one">One</a> About one.'
    assert found(search(html, "text/html")) == [
        (site.url("/one", "find.test"), "One", "About one.")
    ]


def test_an_answer_that_is_none(site: Site, search: Make) -> None:
    for body in (b"{", b"[" * 100_000, b"\xff"):
        with pytest.raises(BrowsingError, match="is not JSON"):
            search(body).search("q", 5)
    source = search({})
    assert source.search("q", 5).hits == ()
    site.answers["/find"] = saying(503)
    with pytest.raises(BrowsingError, match="answered 503"):
        source.search("q", 5)
    site.names["private.test"] = [["127.0.0.2"]]
    with pytest.raises(BrowsingError, match="not on the public Internet"):
        source.fetch(site.url("/", "private.test"))


@pytest.mark.parametrize(
    "url", ["https://a.test/", "https://{query}.test/", "ftp://a.test/{query}", "{query}", ""]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(OptionError, match="the search URL is"):
        SearchAddress(url)
