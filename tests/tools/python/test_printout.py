"""A printout holds the beginning and the end of what arrives, in whatever pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.python.printout import Printout

PLAIN = st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.just("\n"))


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(PLAIN, st.lists(st.integers(0, 10**4)), st.integers(1, 40))
def test_it_is_the_text_or_its_two_ends(text: str, cuts: list[int], half: int) -> None:
    printout = Printout(2 * half)
    for piece in split(text.encode("utf-8"), cuts):
        printout.add(piece)
    assert printout.nbytes == len(text.encode("utf-8"))
    missing = len(text) - 2 * half
    if missing <= 0:
        assert printout.text() == text
    else:
        note = f"\n[{missing} characters left out: the limit is {2 * half}]\n"
        assert printout.text() == text[:half] + note + text[-half:]


@given(st.binary(), st.lists(st.integers(0, 10**4)))
def test_any_bytes_are_text_without_escapes(data: bytes, cuts: list[int]) -> None:
    printout = Printout(10**4)
    for piece in split(data, cuts):
        printout.add(piece)
    printout.text().encode("utf-8")


def test_a_line_written_over_is_shown_once() -> None:
    printout = Printout(1000)
    printout.add(b"  1%\r 50%\r100%\r\ndone\r\n\x1b[1;32mgreen\x1b[0m\x1b]0;title\x07")
    assert printout.text() == "100%\ndone\ngreen"
