"""A snippet: the part of a passage in which most of a query's terms are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gptoss_mlx.tools.browser.documents.terms import numbered, terms_of, words
from gptoss_mlx.tools.browser.page import LINK

LENGTH = 280
"""Characters, of a match and what follows it."""


def snippet(passage: str, rarities: Mapping[int, float]) -> str:
    """A part of a passage in one line, with "..." where it was cut.

    rarities: of the query's terms, by number; the part has the highest sum of those in it.
    """
    text = " ".join(LINK.sub(r"\1", passage).split())
    begin = _best(text, rarities)
    end = begin + LENGTH
    if end < len(text):
        end = text.rfind(" ", begin + LENGTH // 2, end) % (end + 1)
    lead = "..." if begin else ""
    return f"{lead}{text[begin:end].strip()}{'...' if end < len(text) else ''}"


def _best(text: str, rarities: Mapping[int, float]) -> int:
    """Where the best part begins: at a word, or at the text's beginning if it is as good."""
    found = [(word.start(), term) for word in words(text) for term in _asked(word[0], rarities)]
    counts: Counter[int] = Counter()
    best = total = 0.0
    begin = last = 0
    for start, term in found:
        counts[term] += 1
        total += rarities[term] if counts[term] == 1 else 0
        while start - found[last][0] > LENGTH * 3 // 4:
            gone = found[last][1]
            counts[gone] -= 1
            total -= rarities[gone] if not counts[gone] else 0
            last += 1
        if total > best + 1e-9:
            best, begin = total, found[last][0]
            reach = start
    if not best or reach < LENGTH * 3 // 4:
        return 0
    sentence = max(text.rfind(mark, 0, begin) for mark in (". ", "? ", "! ", "。")) + 2
    return sentence if begin - sentence < LENGTH // 4 and sentence > 1 else begin


def _asked(word: str, rarities: Mapping[int, float]) -> list[int]:
    return [number for term in terms_of(word) if (number := numbered(term)) in rarities]
