"""Markdown on a terminal: the same in pieces as at once, nothing lost, nothing drawn twice."""

from __future__ import annotations

import io
import re
from collections import Counter
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from gptoss_mlx.cli.chat.blocks import Blocks
from gptoss_mlx.cli.chat.markdown import Painter
from gptoss_mlx.cli.chat.region import Region
from tests.support.screen import Screen

LINES = (
    *("", " ", "word", "two  words", "**bold", "a ** b", "`code`", "# head", "#### deep", "---"),
    *("- item", "  more", "    much", "* star", "1. one", "2. two", "10) ten", "-", "1."),
    *("```python", "```", "~~~", "````", "x = '''", "    ```", "| a | b |", "|---|:-:|"),
    *("| 1 | 2 | 3 |", "> quote", "<div>html</div>", "&#8238;x &amp;", "[a]: http://b", "[a]"),
    *(
        "![alt](http://c/d.png)",
        "===",
        "\\(x\\)",
        "a\tb",
        "漢字" * 30,
        "w" * 90,
        "<http://e/%E2%80%AE>",
    ),
    *(
        "0007. seven",
        "*a*b_c_ ~~d~~",
        "1986\\. x",
        "\x1b]0;t\x07",
        "\u202eright",
        "\r",
        "\x0b",
        "\x85",
    ),
)
text = st.one_of(
    st.lists(st.sampled_from(LINES), max_size=14).map("\n".join),
    st.text(st.sampled_from("ab1 \n#-*`|>[]()_~\\<&;\t"), max_size=60),
    st.text(max_size=40),
)
LETTERS = re.compile(r"[^\W_]")


def painter(width: int = 40, height: int = 12) -> Painter:
    return Painter(Console(file=io.StringIO(), force_terminal=True, width=width, height=height))


def printed(said: str, cuts: list[int], draws: bool, screen: Screen) -> None:
    """Write a text to a screen in pieces, and draw what is open after each."""
    paint = painter(screen.columns, screen.rows)
    region = Region(cast(io.StringIO, screen), lambda: paint.size)
    blocks = Blocks()
    bounds = sorted({0, len(said), *(cut % (len(said) + 1) for cut in cuts)})
    for begin, end in pairwise(bounds):
        done = [line for block in blocks.push(said[begin:end]) for line in paint.paint(block)]
        seen = paint.paint(blocks.open) if draws and blocks.open is not None else []
        region.update(done, seen)
    region.update([line for block in blocks.close() for line in paint.paint(block)], [])
    assert (screen.column, screen.styled) == (0, False)


@given(text, st.lists(st.integers(0, 1000), max_size=12))
@example("- a\n\n  ```python\n  x\n  ```\n- b\n\nend", list(range(40)))
@example("| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 30 + "| 1 | wide |", list(range(0, 400, 7)))
@example("| a | b |\n|---|---|\n| 1 | 2 | 3 |\n", [])
@example("1. a\n   0007. b", [])
@example("\x1b[1mstyle\x1b[m\n```\n\x1b[7m\n\x1b[1m\n```", [])
@example("```\n" + "line\n" * 40 + "```\nend", list(range(0, 250, 3)))
def test_pieces_give_what_the_whole_gives_and_lose_nothing(said: str, cuts: list[int]) -> None:
    whole, pieces = Screen(40, 12), Screen(40, 12)
    printed(said, [], False, whole)
    printed(said, cuts, True, pieces)
    assert pieces.text == whole.text
    languages = re.findall(r"^ *(?:```+|~~~+) *(\S*)", said, re.M)
    wanted = Counter(LETTERS.findall(said)) - Counter("".join(languages))
    assert wanted <= Counter(LETTERS.findall("\n".join(whole.text)))


@given(text, st.lists(st.integers(0, 1000), max_size=8))
def test_blocks_joined_are_the_text(said: str, cuts: list[int]) -> None:
    blocks = Blocks()
    bounds = sorted({0, len(said), *(cut % (len(said) + 1) for cut in cuts)})
    done = [b for x, y in pairwise(bounds) for b in blocks.push(said[x:y])]
    done += blocks.close()
    assert "\n".join(block.text for block in done) == said.removesuffix("\n")


def painted(said: str, width: int = 40) -> list[str]:
    screen = Screen(width)
    printed(said, [], False, screen)
    return screen.text


def test_what_markdown_means_is_shown() -> None:
    assert painted("# Big\n\nSome **bold**\ntext.\n\n- a\n- b\n   1. c\n\n> q") == [
        *("Big", "", "Some bold text.", "", " • a", " • b", "    1. c", "", "▌ q"),
    ]
    assert painted("| a | b |\n|---|--:|\n| 1 | 22 |") == [" a   b", " ─────", " 1  22"]
    assert painted("[docs](http://a.b) ![i](http://c.d)") == [
        *("docs (http://a.b) !i (http://c.d)",),
    ]
    assert painted("**b** &amp; c") == ["b &amp; c"]
    assert painted("<b>kept</b> &lt;\n\n<div>\nkept\n</div>") == [
        *("<b>kept</b> &lt;", "", "<div> kept </div>"),
    ]


def test_code_is_shown_line_by_line_as_it_was_written() -> None:
    code = "```python\ndef f():\n\treturn '''a\n\n  if b\n'''\n```"
    blocks, paint = Blocks(), painter()
    done = [line for block in blocks.push(code + "\n") for line in paint.paint(block)]
    assert blocks.open is None
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in done]
    assert plain == ["```python", "def f():", "    return '''a", "", "  if b", "'''", "```"]
    assert "\x1b[33m  if b" in done[4]  # a line inside a string has its colour
    assert painted("````\n```\n**z**\n~~~~\n**x**\n````\n**y**") == [
        *("````", "```", "**z**", "~~~~", "**x**", "````", "y"),
    ]


@pytest.mark.parametrize("said", ["\x1b]0;title\x07", "```\n\x1b[31m\x9b\n```", "a\x85\u2028b"])
def test_a_models_control_characters_are_harmless(said: str) -> None:
    lines = painted(said)
    assert "\ufffd" in "\n".join(lines)


def test_only_what_changed_is_written_again() -> None:
    written: list[str] = []
    screen = Screen(40, 12)
    stream = io.StringIO()
    stream.write = lambda text: (written.append(text), screen.write(text))[1]  # type: ignore[method-assign]
    region = Region(stream, lambda: (39, 12))
    region.update([], ["one", "two"])
    region.update([], ["one", "two more"])
    region.update(["one", "two more"], ["three"])
    region.update(["three"], [])
    region.update([], [])
    assert len(written) == 4
    assert "one" not in "".join(written[1:])
    assert "two more" not in "".join(written[2:])
    assert screen.text == ["one", "two more", "three"]


def test_a_window_that_becomes_narrower_erases_what_the_terminal_broke() -> None:
    screen = Screen(40, 12)
    size = [39, 12]
    region = Region(cast(io.StringIO, screen), lambda: (size[0], size[1]))
    region.update(["kept"], ["a" * 35, "b" * 5])
    # As a terminal does: the line of 35 takes two rows of 20 then.
    screen.columns, size[0] = 20, 19
    screen.lines = ["kept", "a" * 20, "a" * 15, "b" * 5]
    screen.row = 3
    region.update(["a" * 19, "a" * 16], ["b" * 5])
    assert screen.text == ["kept", "a" * 19, "a" * 16, "b" * 5]
