"""Pages in lines, and views of them: nothing is lost, and every line can be reached."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.harmony import Encoding
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.page import WIDTH, Page, document_page
from tests.tools.browser.conftest import Shelf

WORDS = st.text(st.sampled_from("ab -\t\n【】†日本é😀'.,"), max_size=400)


@given(WORDS)
def test_wrapped_lines_are_the_text(body: str) -> None:
    page = document_page("https://a.test/", "A", body)
    assert [page.text[start : start + len(line)] for start, line in _pairs(page)] == [*page.lines]
    assert all(len(line) <= WIDTH for line in page.lines)
    rebuilt = ""
    for start, line in _pairs(page):
        rebuilt += page.text[len(rebuilt) : start]
        rebuilt += line
    assert rebuilt == page.text
    assert page.text == "\nURL: https://a.test/\n" + body.expandtabs(8)


def _pairs(page: Page) -> list[tuple[int, str]]:
    return list(zip(page.starts, page.lines, strict=True))


@given(WORDS, st.integers(-5, 500))
def test_an_offset_is_in_its_line(body: str, offset: int) -> None:
    page = document_page("https://a.test/", "A", body)
    line = page.line_at(offset)
    inside = max(0, min(offset, len(page.text)))
    assert page.starts[line] <= inside
    assert line == len(page.lines) - 1 or inside < page.starts[line + 1]


def test_a_long_word_is_wrapped_in_time() -> None:
    page = document_page("https://a.test/", "A", "x" * 3_000_000)
    assert "".join(page.lines[2:]) == "x" * 3_000_000


@given(WORDS, st.integers(1, 60))
def test_scrolling_shows_every_line_once(encoding: Encoding, body: str, tokens: int) -> None:
    page = document_page("https://a.test/", "A", body)
    tool = BrowserTool(Shelf({page.url: page}), encoding, view_tokens=tokens)
    output = tool.call("browser.open", json.dumps({"id": page.url}))
    seen: list[str] = []
    while True:
        assert not output.failed
        head, _, lines = output.text.partition("\n\n")
        bar = re.search(r"\*\*viewing lines \[(\d+) - (\d+)\] of (\d+)\*\*$", head)
        assert bar is not None
        first, last, total = map(int, bar.groups())
        assert (first, total) == (len(seen), len(page.lines) - 1)
        shown = lines.split("\n")
        assert len(shown) == last - first + 1
        seen += [
            line.removeprefix(f"L{number}: ")
            for number, line in zip(range(first, last + 1), shown, strict=True)
        ]
        # all lines but the last begin within the budget
        assert len(encoding.encode("\n".join(shown[:-1]))) <= tokens
        if last == total:
            break
        output = tool.call("browser.open", json.dumps({"loc": last + 1}))
    assert seen == list(page.lines)
