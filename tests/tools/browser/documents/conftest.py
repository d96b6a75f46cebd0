"""Stores that a test opens are closed after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss_mlx.tools.browser.documents.store import DocumentStore


@pytest.fixture(autouse=True)
def stores_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[DocumentStore] = []
    make = DocumentStore.__init__

    def tracked(self: DocumentStore, folder: Path | None) -> None:
        make(self, folder)
        made.append(self)

    monkeypatch.setattr(DocumentStore, "__init__", tracked)
    yield
    for store in made:
        store.close()
