"""What is indexed of a document: its passages, and the terms of each with those of its title."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.tools.browser.documents.bm25 import Postings
from gptoss_mlx.tools.browser.documents.passages import passages
from gptoss_mlx.tools.browser.documents.terms import numbered, terms_of, words

VERSION = 1
"""Of what is indexed; a cache of another one is made anew."""

TITLE_WEIGHT = 2.0
"""How often a term of the title, the heading or the path counts in each passage under it."""


@dataclass(frozen=True)
class Analysis:
    """starts, ends: of the passages, in characters of the text."""

    starts: NDArray[np.uint32]
    ends: NDArray[np.uint32]
    postings: Postings


def analyse(path: str, title: str, text: str) -> Analysis:
    """The index of one document. path: its place in the folder."""
    numbers: dict[str, int] = {}
    terms, rows, counts = list[int](), list[int](), list[float]()
    found = passages(text)
    named = _counted(f"{title} {PurePosixPath(path).with_suffix('')}")
    for row, passage in enumerate(found):
        weights: dict[str, float] = dict(_counted(text[passage.start : passage.end]))
        for term in named | _counted(passage.heading):
            weights[term] = weights.get(term, 0) + TITLE_WEIGHT
        for term, weight in weights.items():
            number = numbers.get(term)
            if number is None:
                number = numbers[term] = numbered(term)
            terms.append(number)
            rows.append(row)
            counts.append(weight)
    postings = Postings(
        np.array(terms, np.uint64), np.array(rows, np.uint32), np.array(counts, np.float32)
    )
    starts = np.array([passage.start for passage in found], np.uint32)
    ends = np.array([passage.end for passage in found], np.uint32)
    return Analysis(starts, ends, postings)


def query_terms(query: str) -> Counter[int]:
    """How often each term is in a query, by its number."""
    return Counter(numbered(term) for word in words(query) for term in terms_of(word[0]))


def _counted(text: str) -> Counter[str]:
    return Counter(term for word in words(text) for term in terms_of(word[0]))
