"""Known items: questions in a person's words, and the page of the project that answers each."""

from __future__ import annotations

from gptoss_mlx.tools.browser.documents.documents import Documents
from tests.root import ROOT
from tests.tools.browser.documents.recall import QUESTIONS, rank


def test_the_page_that_answers_is_among_the_first_five() -> None:
    documents = Documents(ROOT / "docs")
    ranks = {
        each["question"]: rank(
            [hit.url for hit in documents.search(each["question"], 5).hits], each["pages"]
        )
        for each in QUESTIONS["docs"]
    }
    missed = [question for question, place in ranks.items() if place is None]
    assert len(missed) <= len(ranks) // 12, missed
    assert sum(place == 0 for place in ranks.values()) >= len(ranks) * 3 // 4, ranks
