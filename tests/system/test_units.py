"""Sizes and tokens, as people write them and as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.system.units import parse_budget, parse_bytes, parse_tokens, show_bytes, show_tokens


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("10GiB", 10 * 2**30),
        ("10G", 10 * 2**30),
        ("10.7 GiB", round(10.7 * 2**30)),
        (" 10gib ", 10 * 2**30),
        ("8000MB", 8_000_000_000),
        ("1.5tb", 1_500_000_000_000),
        ("512k", 2**19),
        ("1KiB", 1024),
        ("12 b", 12),
        (".5 MiB", 2**19),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_every_unit(power: int) -> None:
    prefix = "kmgt"[power - 1]
    assert parse_bytes(f"3{prefix}b") == 3 * 1000**power
    assert parse_bytes(f"3{prefix}") == parse_bytes(f"3{prefix}ib") == 3 * 1024**power


@pytest.mark.parametrize(
    "text", ["", "10", "GiB", "-1GiB", "1e3GB", "10 GiBs", "10GB Mac", "0GiB", "nan GB", "1.2.3G"]
)
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"no size|nothing") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("text", "tokens"), [("8192", 8192), ("32k", 32768), ("1 M", 2**20)])
def test_tokens(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "0", "1.5k", "32kb", "-1", "many"])
def test_what_is_no_number_of_tokens_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="no number of tokens"):
        parse_tokens(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (824 * 2**20, "824 MiB"),
        (2**30, "1.00 GiB"),
        (round(10.7 * 2**30), "10.70 GiB"),
        (3 * 2**20, "3.0 MiB"),
        (-(2**20), "-1.0 MiB"),
    ],
)
def test_shown_bytes(nbytes: int, text: str) -> None:
    assert show_bytes(nbytes) == text


@given(st.integers(1, 2**45))
def test_what_is_shown_can_be_given_back(nbytes: int) -> None:
    assert parse_bytes(show_bytes(nbytes)) == pytest.approx(nbytes, rel=0.06)


@given(st.integers(1, 2**24))
def test_tokens_shown_are_the_tokens(tokens: int) -> None:
    assert parse_tokens(show_tokens(tokens)) == tokens


def test_a_size_without_end_is_a_size() -> None:
    assert parse_bytes("9" * 400 + "GiB") > 1 << 1000


def test_a_budget_may_be_nothing() -> None:
    assert parse_budget(" 0 ") == 0
    assert parse_budget("2GiB") == 2 << 30
    for text in ("-0", "0x", "00", "0GiB"):
        with pytest.raises(ValueError, match=r"is no size|is nothing"):
            parse_budget(text)
