"""Passages: every word is in one, in order, under its heading."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.browser.documents.passages import MOST, passages

PARTS = st.sampled_from(
    ["word ", "\n", "\n\n", "# Head\n", "x" * 50, "Title\n====\n", " \n", "é" * 700]
)


@given(st.lists(PARTS, max_size=80))
def test_every_word_is_in_one_passage(parts: list[str]) -> None:
    text = "".join(parts)
    found = passages(text)
    assert "".join("".join(text[p.start : p.end] for p in found).split()) == "".join(text.split())
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert all(p.start < p.end <= p.start + MOST for p in found)


def test_a_heading_begins_a_passage_and_names_those_under_it() -> None:
    text = "intro\n\n# One\n\n" + "a b c. " * 300 + "\n\nTwo\n---\ntext"
    found = passages(text)
    assert [p.heading for p in found] == ["", *["One"] * (len(found) - 2), "Two"]
    assert [text[p.start] for p in (found[0], found[1], found[-1])] == ["i", "#", "T"]


def test_short_paragraphs_are_one_passage() -> None:
    assert len(passages("one.\n\ntwo.\n\nthree.")) == 1


def test_blanks_take_linear_time() -> None:
    assert passages("\n \t" * 300_000) == []
    assert len(passages("a" * 1_000_000)) == -(-1_000_000 // MOST)
