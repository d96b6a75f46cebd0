"""Lines of bounded length, and last words, however the bytes come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.mcp.lines import LastWords, LineSplitter

LIMIT = 8


@given(st.lists(st.text("ab\n", max_size=20).map(str.encode), max_size=20))
def test_lines_are_those_of_the_whole_stream(pieces: list[bytes]) -> None:
    splitter = LineSplitter(LIMIT)
    found = [line for piece in pieces for line in splitter.feed(piece)]
    *lines, rest = b"".join(pieces).split(b"\n")
    expected = [None if len(line) > LIMIT else line for line in lines]
    assert found == expected + [None] * (len(rest) > LIMIT)


def test_a_line_without_end_takes_no_memory() -> None:
    splitter = LineSplitter(LIMIT)
    assert [line for _ in range(1000) for line in splitter.feed(b"x" * 65536)] == [None]
    assert len(splitter._open) <= LIMIT
    assert list(splitter.feed(b"x\nab\n")) == [b"ab"]


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_last_words_are_one_short_line(pieces: list[bytes]) -> None:
    words = LastWords()
    for piece in pieces:
        words.add(piece * 100)
    assert len(words._kept) <= 4096
    assert len(str(words).splitlines()) <= 1
    assert len(str(words)) <= 300


def test_the_last_lines_are_told() -> None:
    words = LastWords()
    words.add(b"one\ntwo\n\n  three  \nfo")
    words.add(b"ur\n")
    assert str(words) == "two | three | four"
