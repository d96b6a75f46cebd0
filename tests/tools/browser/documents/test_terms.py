"""Terms: what a word of a query finds, in English, in other scripts, and in code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.browser.documents.terms import stem, terms_of, words


def terms(text: str) -> list[str]:
    return [term for word in words(text) for term in terms_of(word[0])]


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("Model", "models"),
        ("query", "queries"),
        ("cafe", "Café"),
        ("STRASSE", "straße"),
        ("ﬁle", "files"),
        ("dog", "dog's"),
        ("dog", "dog\u2019s"),
        ("window size", "sliding_window_size"),
        ("byteLimit", "byte limit"),
        ("limit", "byteLimit"),
        ("東京", "東京都の天気"),
        ("天気", "東京都の天気"),
        ("한국어", "한국어"),
        ("привет", "Привет!"),
        ("ภาษาไทย", "เรียนภาษาไทย"),
        ("128k", "128K"),
    ],
)
def test_a_query_finds(asked: str, written: str) -> None:
    assert set(terms(asked)) & set(terms(written))


def test_one_ideograph_finds_itself_alone() -> None:
    assert terms("水") == ["水"]
    assert terms("水道水") == ["水道", "道水"]


@pytest.mark.parametrize(
    ("word", "stemmed"),
    [
        ("ponies", "pony"),
        ("classes", "class"),
        ("class", "class"),
        ("boxes", "box"),
        ("caches", "cach"),
        ("cache", "cach"),
        ("uses", "use"),
        ("bus", "bus"),
        ("gas", "gas"),
        ("is", "is"),
        ("tables", "table"),
    ],
)
def test_plurals(word: str, stemmed: str) -> None:
    assert stem(word) == stemmed


def test_data_has_no_terms() -> None:
    assert terms("A" * 65) == []
    assert len(terms("a" * 64)) == 1


@given(st.text(max_size=60))
def test_any_text_has_terms_without_blanks(text: str) -> None:
    assert all(term and not term.isspace() for term in terms(text))
    assert terms(text) == terms(text)
