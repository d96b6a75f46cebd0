"""The browser as the agent's loop calls it: cursors, links, positions, and mistakes of a model."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.errors import OptionError
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.page import document_page
from gptoss_mlx.tools.browser.source import Hit
from gptoss_mlx.tools.tool import Outcome, Tool
from tests.tools.browser.conftest import Shelf, shelf_of

LONG = "\n".join(f"line {number} of a page" for number in range(500))
Browse = Callable[..., BrowserTool]


def call(tool: BrowserTool, function: str, **arguments: object) -> Outcome:
    return tool.call(f"browser.{function}", json.dumps(arguments))


def text(tool: BrowserTool, function: str, **arguments: object) -> str:
    output = call(tool, function, **arguments)
    assert not output.failed, output.text
    return output.text


def scrollbar(shown: str) -> str:
    return shown.split("\n")[1].strip("*")


def test_it_is_a_tool(browse: Browse) -> None:
    tool: Tool = browse()
    assert tool.name == "browser"
    tool.close()  # leaves the source open, which raises


def test_a_search_then_a_link_then_a_line(browse: Browse) -> None:
    tool = browse(guide=LONG)
    assert "  * 【0†Guide†guide.test】 line 0 of a page" in text(tool, "search", query="page")
    assert text(tool, "open", id=0).startswith("[1] Guide (https://guide.test/)\n")
    assert "L302: line 300 of a page" in text(tool, "open", cursor=1, loc=302, num_lines=1)


def test_topn_is_what_is_shown_and_at_least_one(encoding: Encoding) -> None:
    hits = tuple(Hit(f"https://{i}.test/", f"title {i}", f"{i}.test", "") for i in range(40))
    tool = BrowserTool(Shelf({}, hits), encoding)
    for asked, shown in ((3, 3), (0, 1), (-5, 1), (1000, 20)):
        assert text(tool, "search", query="q", topn=asked).count("【") == shown


def test_a_result_opens_at_its_passage(encoding: Encoding) -> None:
    page = document_page("https://a.test/", "A", LONG)
    hit = Hit("https://a.test/", "A", "a.test", "", offset=page.text.index("line 300"))
    tool = BrowserTool(Shelf({page.url: page}, (hit,)), encoding)
    call(tool, "search", query="300")
    assert scrollbar(text(tool, "open", id=0)).startswith("viewing lines [298 - ")
    assert scrollbar(text(tool, "open", id=0, cursor=0, loc=7)).startswith("viewing lines [7 - ")


def test_a_number_of_lines_is_obeyed_within_a_bound(encoding: Encoding) -> None:
    tool = BrowserTool(shelf_of(a="word " * 200_000), encoding)
    shown = text(tool, "open", id="https://a.test/", num_lines=100_000)
    assert 7000 < len(encoding.encode(shown)) < 9500
    assert scrollbar(text(tool, "open", num_lines=300)) == "viewing lines [0 - 299] of 12514"


def test_what_was_opened_is_fetched_once_by_links_and_anew_by_its_url(encoding: Encoding) -> None:
    shelf = shelf_of(a="one", b="two")
    tool = BrowserTool(shelf, encoding)
    text(tool, "search", query="q")
    for _ in range(3):
        text(tool, "open", id=0, cursor=0)
    assert shelf.fetched == ["https://a.test/"]
    text(tool, "open", id="https://a.test/")
    assert shelf.fetched == ["https://a.test/"] * 2


def test_two_searches_keep_their_results_apart(encoding: Encoding) -> None:
    shelf = shelf_of(a="one", b="two")
    tool = BrowserTool(shelf, encoding)
    text(tool, "search", query="first")
    shelf.hits = shelf.hits[::-1]
    text(tool, "search", query="second")
    assert text(tool, "open", id=0, cursor=0).startswith("[2] A (")
    assert text(tool, "open", id=0, cursor=1).startswith("[3] B (")


def test_a_note_is_shown_once_until_it_changes(encoding: Encoding) -> None:
    shelf = shelf_of(a="one")
    tool = BrowserTool(shelf, encoding)
    for notes, shown in (((), False), (("x is left out",), True), (("x is left out",), False)):
        shelf.notes = notes
        assert ("Note: x is left out" in text(tool, "search", query="q")) is shown


def test_a_page_that_cannot_be_shown_takes_no_cursor(browse: Browse) -> None:
    tool = browse(a="one")
    assert call(tool, "open", id="https://a.test/", loc=99).failed
    assert text(tool, "open", id="https://a.test/").startswith("[0] ")


@pytest.mark.parametrize("id", ["0", 0.0, "【0†A†a.test】", " 0 "])
def test_a_link_is_understood_however_it_is_written(browse: Browse, id: object) -> None:
    tool = browse(a="one")
    text(tool, "search", query="q")
    assert text(tool, "open", id=id, cursor="0", loc=None, num_lines="-1").startswith("[1] A (")


@pytest.mark.parametrize(
    ("recipient", "arguments", "said"),
    [
        ("browser.click", "{}", "There are browser.search, browser.open, browser.find."),
        ("browser", "{}", "Unknown function: 'browser'."),
        ("python", "1", "Unknown function: 'python'."),
        ("browser.search", "", "`query` is missing."),
        ("browser.search", '{"query": " "}', "`query` is ' '."),
        ("browser.search", '{"query": ["a"]}', "`query` is ['a']."),
        ("browser.search", '{"query": "a", "topn": "many"}', "`topn` should be an integer"),
        ("browser.search", '{"query": "a"', "The arguments are not JSON"),
        ("browser.search", '["a"]', 'must be an object such as {"query"'),
        ("browser.search", '{"q": "a"}', "`search` has no argument 'q'. Its arguments are `query`"),
        ("browser.find", '{"pattern": "x", "cursor": true}', "`cursor` should be an integer"),
        ("browser.find", '{"pattern": ""}', "`pattern` is ''."),
        ("browser.find", '{"pattern": "x", "cursor": 0}', "Give the `cursor` of an opened page."),
        ("browser.open", '{"id": {}}', "`id` should be a link's number or a URL, not {}."),
        ("browser.open", '{"id": 7}', "Invalid link id `7`. This page has the ids 0 to 0."),
        ("browser.open", '{"id": 0, "cursor": 3}', "Available cursor indices: [0 - 0]."),
        ("browser.open", '{"cursor": -2}', "Cursor `-2` is out of range."),
        ("browser.open", '{"loc": 900}', "Cannot exceed page maximum of 4."),
        ("browser.open", '{"id": 0, "loc": 1.5}', "`loc` should be an integer, not 1.5."),
        ("browser.open", '{"id": 0, "view_source": 3}', "`view_source` should be true or false"),
        ("browser.open", '{"id": "https://b.test/"}', "Error fetching URL `https://b.test/`:"),
        ("browser.open", "[" * 60_000, "The arguments are not JSON"),
        ("browser.open", "{" + " " * 70_000 + "}", "65,536 is the limit"),
        ("browser.open", '{"loc": ' + "9" * 5000 + "}", "The arguments are not JSON"),
    ],
)
def test_a_mistake_says_what_would_be_right(
    browse: Browse, recipient: str, arguments: str, said: str
) -> None:
    tool = browse(a="one")
    text(tool, "search", query="q")
    output = tool.call(recipient, arguments)
    assert output.failed
    assert said in output.text
    assert len(output.text) < 600


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
SENSIBLE = st.integers(-3, 600) | st.sampled_from(["https://a.test/", "0", "x", True])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["search", "open", "find"]),
            st.dictionaries(
                st.sampled_from(
                    ["query", "topn", "id", "cursor", "loc", "num_lines", "view_source", "pattern"]
                ),
                SENSIBLE | VALUES,
            ),
        ),
        max_size=6,
    )
)
def test_any_calls_give_texts_and_count_the_cursors(
    encoding: Encoding, calls: list[tuple[str, dict[str, object]]]
) -> None:
    tool = BrowserTool(shelf_of(a=LONG, b="x"), encoding, view_tokens=50)
    cursor = 0
    for function, arguments in calls:
        output = tool.call(f"browser.{function}", json.dumps(arguments))
        assert output.text
        if not output.failed:
            assert output.text.startswith(f"[{cursor}] ")
            cursor += 1


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_gives_a_text(encoding: Encoding, recipient: str, arguments: str) -> None:
    assert BrowserTool(Shelf({}), encoding).call(recipient, arguments).failed


def test_a_view_has_room_for_a_token(encoding: Encoding) -> None:
    with pytest.raises(OptionError, match="view_tokens is 0, but must be 1 or more"):
        BrowserTool(Shelf({}), encoding, view_tokens=0)
