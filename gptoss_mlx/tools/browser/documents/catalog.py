"""The catalog of a folder's documents: ranked for a query, and found by the name the model writes.

A passage's score is its own BM25 and that of its whole document: a passage must fit, and a document
that speaks of little else goes before one that mentions it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

import numpy as np

from gptoss_mlx.tools.browser.documents.analysis import query_terms
from gptoss_mlx.tools.browser.documents.bm25 import Postings, Ranking
from gptoss_mlx.tools.browser.documents.store import Indexed
from gptoss_mlx.tools.browser.plain import one_line

MOST_PASSAGES = 3
"""Passages of a document among results, where there are too few documents."""

_SHOWN = 1024  # characters of a path


@dataclass(frozen=True)
class Ranked:
    """A passage: characters `start` to `end` of a document's text."""

    path: str
    start: int
    end: int
    score: float


class Catalog:
    """The documents as they were when it was made; a change makes a new one."""

    def __init__(self, documents: Iterable[Indexed]) -> None:
        self._paths: list[str] = []
        starts, ends, parts = [], [], []
        for document in documents:
            self._paths.append(document.path)
            starts.append(document.analysis.starts)
            ends.append(document.analysis.ends)
            parts.append(document.analysis.postings)
        sizes = [len(each) for each in starts]
        firsts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        self._starts = np.concatenate([np.empty(0, np.uint32), *starts])
        self._ends = np.concatenate([np.empty(0, np.uint32), *ends])
        self._owners = np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)
        postings = Postings.joined(parts, firsts[:-1].tolist())
        self._passages = Ranking(postings, int(firsts[-1]))
        self._whole = Ranking(postings.merged(self._owners), len(sizes))
        self._names: dict[str, str] = {}
        for path in self._paths:
            self._names[_free(one_line(path, _SHOWN), self._names)] = path
        self._shown = {path: name for name, path in self._names.items()}

    def __len__(self) -> int:
        return len(self._paths)

    def search(self, query: str, count: int) -> list[Ranked]:
        """The best passages: first the best one of each document, then further ones."""
        terms = query_terms(query)
        passages = self._passages.scores(terms)
        scores = passages + self._whole.scores(terms)[self._owners]
        found = np.flatnonzero(passages > 0)
        order = found[np.argsort(-scores[found], kind="stable")]
        firsts, others, seen = list[int](), list[int](), dict[int, int]()
        for row in order.tolist():
            owner = int(self._owners[row])
            seen[owner] = seen.get(owner, 0) + 1
            if seen[owner] == 1:
                firsts.append(row)
            elif seen[owner] <= MOST_PASSAGES and len(others) < count:
                others.append(row)
            if len(firsts) == count:
                break
        return [
            Ranked(
                self._paths[int(self._owners[row])],
                int(self._starts[row]),
                int(self._ends[row]),
                float(scores[row]),
            )
            for row in (firsts + others)[:count]
        ]

    def rarities(self, query: str) -> Mapping[int, float]:
        """The rarity of each of a query's terms, by number."""
        return {term: self._passages.rarity(term) for term in query_terms(query)}

    def shown(self, path: str) -> str:
        """The name by which the model knows a document."""
        return self._shown[path]

    def path(self, name: str) -> str | None:
        """The document that a name means: its path, or its last part where only one has it."""
        name = name.strip().removeprefix("file://").removeprefix("./").lstrip("/")
        for tried in (name, unquote(name), name.partition("#")[0]):
            if tried in self._names:
                return self._names[tried]
        last = PurePosixPath(unquote(name.partition("#")[0])).name
        same = [path for shown, path in self._names.items() if PurePosixPath(shown).name == last]
        return same[0] if len(same) == 1 else None


def _free(name: str, taken: Mapping[str, str]) -> str:
    """The name, or one with a number where two paths look the same."""
    number, tried = 1, name
    while tried in taken:
        number += 1
        tried = f"{name} ({number})"
    return tried
