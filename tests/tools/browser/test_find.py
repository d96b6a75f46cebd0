"""Find: exact matches in any case, by the line in which each begins."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.browser.find import MATCH_LINES, MOST_MATCHES, find_in
from gptoss_mlx.tools.browser.page import Page, document_page
from gptoss_mlx.tools.browser.plain import plain
from gptoss_mlx.tools.browser.source import BrowsingError


def page_of(body: str) -> Page:
    return document_page("https://a.test/", "A", body)


def found(page: Page, pattern: str) -> list[int]:
    return [int(line) for line in re.findall(r"†match at L(\d+)】", find_in(page, pattern).text)]


@given(
    st.lists(st.sampled_from(["ab b", "b", " ", "xxxx ", "-", "ab ab"] * 4 + ["\n"]), max_size=120)
)
def test_matches_are_those_of_a_plain_search(parts: list[str]) -> None:
    page = page_of("".join(parts))
    lines, at = set(), page.text.find("ab b")
    while at >= 0:
        lines.add(page.line_at(at))
        at = page.text.find("ab b", at + 1)
    expected, after = [], 0
    for line in sorted(lines):
        if line >= after:
            expected.append(line)
            after = line + MATCH_LINES
    assert found(page, "AB b") == expected[:MOST_MATCHES]


def test_a_match_goes_on_where_a_line_was_wrapped() -> None:
    page = page_of("x " * 37 + "the needle in it")
    assert page.lines[2].endswith("the ")
    assert found(page, "the needle") == [2]


def test_links_count_as_their_texts_and_lines_keep_their_numbers() -> None:
    domain = "a-long-domain-with-hyphens.example"
    page = page_of("w " * 24 + f"【0†a link†{domain}】 in it\nneedle")
    assert domain not in "".join(f"{line}\n" for line in page.lines)  # it is in two lines
    assert found(page, "a link in it") == [2]
    assert found(page, "needle") == [page.lines.index("needle")] == [4]
    assert found(page, "hyphens") == []


def test_matches_open_where_they_are() -> None:
    page = page_of("\n".join(f"line {number}" for number in range(50)))
    matches = find_in(page, "line 33")
    assert page.line_at(matches.links[0].offset or 0) == 35
    assert matches.title == "Find results for text: `line 33` in `A`"


def test_at_most_fifty_matches() -> None:
    assert len(found(page_of("needle\n" * 1000), "needle")) == MOST_MATCHES


def test_nothing_found_is_said() -> None:
    assert find_in(page_of("a"), "Zebra").text == "No `find` results for pattern: `zebra`"


def test_a_pattern_is_compared_as_the_page_is_written() -> None:
    hidden = "ne\u200bedle"
    assert found(page_of(plain(f"a {hidden}")), hidden) == [2]


@pytest.mark.parametrize("kind", ["matches"])
def test_matches_cannot_be_searched(kind: str) -> None:
    with pytest.raises(BrowsingError, match="Cannot run `find` on search results page"):
        find_in(find_in(page_of("a"), "a"), "a")


def test_a_match_at_the_beginning_of_a_wrapped_line_is_of_that_line() -> None:
    page = page_of("x" * 79 + " needle")
    assert page.lines[3] == "needle"
    assert found(page, "needle") == [3]
