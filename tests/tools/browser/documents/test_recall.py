"""Known items: questions in a person's words, and the page of the project that answers each."""

from __future__ import annotations

from pathlib import Path

from gptoss_mlx.tools.browser.documents.documents import Documents
from tests.root import ROOT

QUESTIONS = {
    "which port does ollama need": "server-ollama.md",
    "use claude code with a local model": "server-anthropic.md",
    "configure codex config.toml": "server-responses.md",
    "run on 16 GB macbook": "mac.md",
    "compute capability of the graphics card": "card.md",
    "quantize weights to fewer bits and convert": "conversion.md",
    "answer must match a json schema": "structured.md",
    "is the kv cache reused after a restart": "prefix.md",
    "where are conversations of the chat page stored": "page.md",
    "avx512 and amx on a pc": "cpu.md",
    "which experts should be evicted": "streaming.md",
    "memory needed for 120b": "memory.md",
    "what is tested against float64": "testing.md",
    "logprobs for raw prompt completion": "server-completions.md",
    "api key and origins cors": "server.md",
    "what can the tiny model do": "tiny.md",
}


def test_the_page_that_answers_is_among_the_first_five() -> None:
    documents = Documents(Path(ROOT) / "docs")
    ranks = {
        question: [hit.url for hit in documents.search(question, 5).hits].index(page)
        for question, page in QUESTIONS.items()
    }
    assert sum(rank == 0 for rank in ranks.values()) >= len(QUESTIONS) * 3 // 4, ranks
    documents.close()
