"""BM25 over passages: an inverted index in a few arrays, scored without a loop over passages.

The formula is that of S. Robertson and H. Zaragoza, "The Probabilistic Relevance Framework: BM25
and Beyond" (2009), with their usual k1 = 1.2 and b = 0.75, and Lucene's idf, which is never
negative: ln(1 + (N - n + 0.5) / (n + 0.5)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

K1 = 1.2
B = 0.75


@dataclass(frozen=True)
class Postings:
    """Which term is how often in which passage: three arrays of one length.

    terms: numbers of terms. passages: from 0. counts: weighted, so not always whole.
    """

    terms: NDArray[np.uint64]
    passages: NDArray[np.uint32]
    counts: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[Postings], firsts: Sequence[int]) -> Postings:
        """Those of several documents. firsts: the number of each one's first passage."""
        if not parts:
            return cls(np.empty(0, "<u8"), np.empty(0, "<u4"), np.empty(0, "<f4"))
        moved = [
            part.passages + np.uint32(first) for part, first in zip(parts, firsts, strict=True)
        ]
        return cls(
            np.concatenate([part.terms for part in parts]),
            np.concatenate(moved),
            np.concatenate([part.counts for part in parts]),
        )

    def merged(self, owners: NDArray[np.uint32]) -> Postings:
        """Those of whole documents. owners: the document of each passage."""
        documents = owners[self.passages]
        order = np.lexsort((documents, self.terms))
        terms, documents = self.terms[order], documents[order]
        is_new = (np.diff(terms, prepend=~terms[:1]) != 0) | (
            np.diff(documents, prepend=~documents[:1]) != 0
        )
        starts = np.flatnonzero(is_new)
        counts = np.add.reduceat(self.counts[order], starts) if len(starts) else self.counts
        return Postings(terms[starts], documents[starts], counts)


class Ranking:
    """An index of `size` passages, or documents."""

    def __init__(self, postings: Postings, size: int) -> None:
        order = np.argsort(postings.terms, kind="stable")
        self._terms, starts = np.unique(postings.terms[order], return_index=True)
        self._starts = np.append(starts, len(order))
        self._passages, self._counts = postings.passages[order], postings.counts[order]
        lengths = np.bincount(postings.passages, postings.counts, size)
        mean = lengths.mean() if size else 1.0
        self._norms = (K1 * (1 - B + B * lengths / (mean or 1.0))).astype(np.float32)
        self.size = size

    def scores(self, query: Mapping[int, float]) -> NDArray[np.float32]:
        """The score of every passage. query: how often each term, by its number, is asked for."""
        scores = np.zeros(self.size, np.float32)
        for term, times in query.items():
            found = self._range(term)
            rows, counts = self._passages[found], self._counts[found]
            # a passage has a term once, so no row comes twice
            scores[rows] += (
                times * self.rarity(term) * counts * (K1 + 1) / (counts + self._norms[rows])
            )
        return scores

    def rarity(self, term: int) -> float:
        """A term's inverse document frequency; of one that no passage has, the highest."""
        found = self._range(term)
        count = found.stop - found.start
        return float(np.log1p((self.size - count + 0.5) / (count + 0.5)))

    def _range(self, term: int) -> slice:
        at = int(np.searchsorted(self._terms, np.uint64(term)))
        if at == len(self._terms) or int(self._terms[at]) != term:
            return slice(0, 0)
        return slice(int(self._starts[at]), int(self._starts[at + 1]))
