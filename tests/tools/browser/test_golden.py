"""The same calls to OpenAI's browser tool and to ours, over the same pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptoss_mlx.harmony import Encoding
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.html_text import html_text
from gptoss_mlx.tools.browser.page import Link, Page, shown_url
from gptoss_mlx.tools.browser.source import Hit
from gptoss_mlx.tools.browser.web.website import PageLinks
from tests.tools.browser.conftest import Shelf

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "conversation.json").read_text("utf-8"))


def page(given: dict[str, Any]) -> Page:
    links = {int(number): Link(url) for number, url in given["urls"].items()}
    return Page(given["url"], given["title"], given["text"], shown_url(given["url"]), links)


def test_every_view_is_the_same(encoding: Encoding) -> None:
    """An error begins with the same sentence, and goes on with what would be right."""
    pages = {given["url"]: page(given) for given in GOLDEN["pages"]}
    hits = tuple(
        Hit(each["url"], each["title"], each["url"].split("/")[2], each["summary"])
        for each in GOLDEN["results"]
    )
    tool = BrowserTool(Shelf(pages, hits), encoding)
    for golden in GOLDEN["calls"]:
        output = tool.call(f"browser.{golden['call']}", json.dumps(golden["arguments"]))
        expected = golden["text"]
        assert output.failed == (not expected.startswith("["))
        if output.failed:
            expected = expected.replace("not `str`", "not 'a'")
            assert output.text.startswith(expected.rstrip("."))
            continue
        assert output.text == expected, golden["arguments"]


def test_a_page_of_html_is_the_same() -> None:
    """But for blanks at the ends of lines, and for the URL above, which is of the page."""
    expected = json.loads((FOLDER / "page.json").read_text("utf-8"))
    found = html_text((FOLDER / "page.html").read_text("utf-8"), PageLinks(expected["url"]))
    assert found.title == expected["title"]
    assert [line.rstrip() for line in expected["text"].split("\n")] == found.text.split("\n")
    assert {str(number): link.url for number, link in found.links.items()} == expected["urls"]
