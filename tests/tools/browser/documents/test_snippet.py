"""Snippets: the part of a passage that has most of what was asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.browser.documents.snippet import LENGTH, snippet
from gptoss_mlx.tools.browser.documents.terms import numbered

RARE = {numbered("needle"): 3.0, numbered("pin"): 2.0, numbered("hay"): 0.1}


def test_it_shows_what_was_asked_for() -> None:
    text = "hay " * 200 + "here a needle and a pin are. " + "hay " * 200
    shown = snippet(text, RARE)
    assert "needle and a pin" in shown
    assert shown.startswith("...")
    assert shown.endswith("...")


def test_a_short_passage_is_shown_whole() -> None:
    assert snippet("a  needle\nin 【3†the hay†a.test】", RARE) == "a needle in the hay"


def test_without_a_match_it_is_the_beginning() -> None:
    assert snippet("first words " * 60, RARE).startswith("first words first")


@given(st.lists(st.sampled_from(["needle", "hay", "pin", "x" * 90, ". ", "日本"]), max_size=120))
def test_any_passage_has_a_bounded_snippet(parts: list[str]) -> None:
    text = " ".join(" ".join(parts).split())
    shown = snippet(text, RARE)
    assert len(shown) <= LENGTH + 6
    assert shown.removeprefix("...").removesuffix("...") in text
    if "needle" in text:
        assert "needle" in shown
