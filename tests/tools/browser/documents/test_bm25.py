"""BM25 against its formula written out, in float64, one passage at a time."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.browser.documents.bm25 import Postings, Ranking

TEXTS = st.lists(st.lists(st.integers(0, 12), max_size=30), min_size=1, max_size=12)
QUERIES = st.lists(st.integers(0, 15), max_size=6)


def postings_of(texts: list[list[int]]) -> Postings:
    rows = [(term, row, n) for row, text in enumerate(texts) for term, n in Counter(text).items()]
    terms, passages, counts = zip(*rows, strict=True) if rows else ((), (), ())
    return Postings(
        np.array(terms, np.uint64), np.array(passages, np.uint32), np.array(counts, np.float32)
    )


def formula(texts: list[list[int]], query: list[int]) -> list[float]:
    """Robertson's, with k1 = 1.2, b = 0.75; a term asked for twice counts twice."""
    mean = sum(map(len, texts)) / len(texts) or 1.0
    scores = []
    for text in texts:
        score = 0.0
        for term in query:
            n = sum(term in other for other in texts)
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            f = text.count(term)
            score += idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(text) / mean))
        scores.append(score)
    return scores


@given(TEXTS, QUERIES)
def test_scores_are_those_of_the_formula(texts: list[list[int]], query: list[int]) -> None:
    ranking = Ranking(postings_of(texts), len(texts))
    scores = ranking.scores(Counter(query))
    assert scores == pytest.approx(formula(texts, query), rel=1e-5, abs=1e-6)


@given(TEXTS, st.lists(st.integers(0, 3), min_size=12, max_size=12), QUERIES)
def test_merged_passages_are_whole_documents(
    texts: list[list[int]], owners: list[int], query: list[int]
) -> None:
    of = np.array(sorted(owners[: len(texts)]), np.uint32)
    whole: list[list[int]] = [[] for _ in range(int(of.max()) + 1)]
    for text, owner in zip(texts, of.tolist(), strict=True):
        whole[owner] += text
    scores = Ranking(postings_of(texts).merged(of), len(whole)).scores(Counter(query))
    assert scores == pytest.approx(formula(whole, query), rel=1e-5, abs=1e-6)


def test_joined_documents_are_numbered_on() -> None:
    parts = [postings_of([[1], [2, 2]]), postings_of([[2]])]
    joined = Postings.joined(parts, [0, 2])
    assert sorted(zip(joined.terms.tolist(), joined.passages.tolist(), strict=True)) == [
        (1, 0),
        (2, 1),
        (2, 2),
    ]


def test_numbers_of_terms_use_all_64_bits() -> None:
    high = 2**64 - 1
    ranking = Ranking(postings_of([[high], [high - 1], [0]]), 3)
    assert [score > 0 for score in ranking.scores({high: 1})] == [True, False, False]
    assert [score > 0 for score in ranking.scores({high - 2: 1})] == [False] * 3


def test_no_documents() -> None:
    empty = Ranking(Postings.joined([], []), 0)
    assert empty.scores({1: 1}).tolist() == []
