"""SearXNG and web pages through the browser, on a made-up Internet."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from gptoss_mlx.errors import OptionError
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.source import BrowsingError
from gptoss_mlx.tools.browser.web.searxng import SearXNG
from gptoss_mlx.tools.browser.web.website import TEXT_LIMIT, fetch_page
from tests.tools.browser.documents.test_extract import pdf
from tests.tools.browser.web.conftest import Site, plainly, saying


def results(*found: object, **more: object) -> bytes:
    return json.dumps({"results": found, **more}).encode()


@pytest.fixture
def search(site: Site) -> Callable[..., SearXNG]:
    """A SearXNG of these answers, named by a local address."""
    site.names["searx.test"] = [["127.0.0.1"]]

    def make(body: bytes, path: str = "") -> SearXNG:
        site.answers[f"{path}/search"] = plainly(body, "application/json")
        return SearXNG(site.url(f"{path}/", "searx.test"), site.client())

    return make


def test_a_search_and_a_page(
    site: Site, search: Callable[..., SearXNG], encoding: Encoding
) -> None:
    page = site.url("/one")
    site.answers["/one"] = plainly("<title>One é</title><p>Its <a href=/two>text</a>.".encode())
    source = search(results({"url": page, "title": "One", "content": "A <b>snippet</b>"}))
    tool = BrowserTool(source, encoding)
    shown = tool.call("browser.search", '{"query": "what & who"}').text
    assert f"【0†One†public.test:{site.port}】 A <b>snippet</b>" in shown.replace("\nL5: ", "")
    assert site.asked == ["/search?q=what+%26+who&format=json"]
    opened = tool.call("browser.open", '{"id": 0}').text
    assert opened == (
        f"[1] One é ({page})\n**viewing lines [0 - 2] of 2**\n\n"
        f"L0: \nL1: URL: {page}\nL2: Its 【0†text】."
    )
    assert tool.call("browser.open", '{"id": 0}').text.startswith("Error fetching URL")


def test_half_a_character_is_asked_for_as_a_whole_one(
    site: Site, search: Callable[..., SearXNG], encoding: Encoding
) -> None:
    tool = BrowserTool(search(results()), encoding)
    assert not tool.call("browser.search", '{"query": "a\\ud800"}').failed
    assert site.asked == ["/search?q=a%EF%BF%BD&format=json"]
    assert tool.call("browser.open", json.dumps({"id": site.url("/\ud800")})).failed
    assert site.asked[1:] == ["/%EF%BF%BD"]


def test_a_server_below_a_path(search: Callable[..., SearXNG]) -> None:
    assert len(search(results({"url": "https://a.test/"}), "/searx").search("q", 5).hits) == 1


def test_only_results_of_the_web_count(search: Callable[..., SearXNG]) -> None:
    found = search(
        results(
            {"url": "https://a.test/", "title": None, "content": 3},
            {"url": "magnet:?x"},
            {"url": "file:///etc/passwd"},
            {"url": 5},
            "text",
            None,
            {"title": "no url"},
            {"url": "http://b.test/"},
        )
    ).search("q", 10)
    assert [hit.url for hit in found.hits] == ["https://a.test/", "http://b.test/"]


def test_engines_that_do_not_answer_are_told(search: Callable[..., SearXNG]) -> None:
    source = search(results(unresponsive_engines=[["duck", "timeout"], ["moon", "CAPTCHA"]]))
    assert source.search("q", 5).notes == (
        "these search engines did not answer: duck timeout, moon CAPTCHA",
    )


BROKEN = ((b"<html>", "not JSON"), (b"[]", "no results"), (b'{"results": 3}', "no results"))
WORSE = ((b"[" * 100_000, "not JSON"), (b"\xff\xfe", "not JSON"))


@pytest.mark.parametrize(("body", "why"), BROKEN + WORSE)
def test_a_broken_answer(search: Callable[..., SearXNG], body: bytes, why: str) -> None:
    with pytest.raises(BrowsingError, match=why):
        search(body).search("q", 5)


def test_a_server_that_refuses_json_says_how_to_allow_it(
    site: Site, search: Callable[..., SearXNG]
) -> None:
    source = search(b"")
    site.answers["/search"] = saying(403)
    with pytest.raises(BrowsingError, match=r"settings.yml must list json in search.formats"):
        source.search("q", 5)
    site.answers["/search"] = saying(500)
    with pytest.raises(BrowsingError, match="answered 500"):
        source.search("q", 5)


def test_a_page_may_not_be_what_the_search_server_is(
    site: Site, search: Callable[..., SearXNG]
) -> None:
    site.names["private.test"] = [["127.0.0.2"]]
    with pytest.raises(BrowsingError, match="not on the public Internet"):
        search(results()).fetch(site.url("/", "private.test"))


@pytest.mark.parametrize("url", ["", "searx", "ftp://a.test", "http://user@a.test"])
def test_a_search_url_that_is_none(url: str) -> None:
    with pytest.raises(OptionError, match="the search URL is"):
        SearXNG(url)


def test_text_and_charsets(site: Site) -> None:
    japanese = "<meta charset=shift_jis><p>日本".encode("shift_jis")
    for body, kind, text in (
        (b'{"a": 1}', "application/json", '{"a": 1}'),
        (b"a,b", "text/csv", "a,b"),
        (b"plain", "text/plain; charset=us-ascii", "plain"),
        (japanese, "text/html", "日本"),
        ("<p>ünter".encode("latin-1"), "text/html; charset=latin-1", "ünter"),
        ("<p>ünter".encode("latin-1"), "text/html; charset=utf-8", "\ufffdnter"),
        (b"<p>no type", "", "no type"),
    ):
        site.answers["/"] = plainly(body, kind)
        assert fetch_page(site.client(), site.url(), False).text.endswith(f"\n{text}")


def test_a_pdf_of_the_web(site: Site) -> None:
    pytest.importorskip("pypdf")
    site.answers["/"] = plainly(pdf(["On the web"]), "application/pdf")
    assert fetch_page(site.client(), site.url(), False).text.endswith("[Page 1]\nOn the web")
    with pytest.raises(BrowsingError, match="more than 100 bytes"):
        fetch_page(site.client(bytes_limit=100), site.url(), False)


def test_other_kinds_are_refused_by_name(site: Site) -> None:
    for body, kind in ((b"\x89PNG\0", "image/png"), (b"\0\0", "text/plain"), (b"PK\0", "")):
        site.answers["/"] = plainly(body, kind)
        with pytest.raises(BrowsingError, match="Only HTML, text and PDF can be read"):
            fetch_page(site.client(), site.url(), False)


def test_an_error_of_the_server_is_told(site: Site) -> None:
    with pytest.raises(BrowsingError, match="The server answered 404 Not Found"):
        fetch_page(site.client(), site.url("/missing"), False)


def test_a_long_page_is_cut_off_and_says_so(site: Site) -> None:
    site.answers["/"] = plainly(b"<p>" + b"word " * (TEXT_LIMIT // 5 + 10))
    text = fetch_page(site.client(), site.url(), False).text
    assert text.endswith("w\n\n[The page is cut off here.]")


def test_the_source_of_a_page_and_its_base(site: Site) -> None:
    html = b"<base href='/deep/'><p><a href=x>y</a><a href='http://[::1'>z</a>"
    site.answers["/"] = plainly(html)
    page = fetch_page(site.client(), site.url(), True)
    assert (page.url, page.text.endswith(html.decode())) == (f"view-source:{site.url()}", True)
    links = fetch_page(site.client(), site.url(), False).links
    assert [link.url for link in links.values()] == [site.url("/deep/x")]
    site.answers["/"] = plainly(html.replace(b"/deep/", b"http://[::1"))
    assert fetch_page(site.client(), site.url(), False).links[0].url == site.url("/x")


def test_a_url_without_a_scheme_is_a_secure_one(site: Site) -> None:
    with pytest.raises(BrowsingError, match="is not known"):
        fetch_page(site.client(), "unknown.test/page", False)
    assert site.resolved == ["unknown.test"]
