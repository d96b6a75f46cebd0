"""Known-item search: how often the page that answers a question is among the first results.

    python -m tests.tools.browser.documents.recall SET FOLDER

SET is one of recall.json: "docs" is of this project's docs/, "rust" of the Rust and Cargo books in
HTML, "cmake" of CMake's Help folder, "man" of Linux manual pages as text, a file each. A question's
pages are parts of paths. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

QUESTIONS: dict[str, list[dict[str, str]]] = json.loads(
    Path(__file__).with_name("recall.json").read_text("utf-8")
)


def rank(urls: list[str], pages: str) -> int | None:
    """The place of the first URL that has one of the parts in it, from 0."""
    return next((i for i, url in enumerate(urls) if any(page in f"/{url}" for page in pages)), None)


def main(name: str, folder: str) -> dict[str, object]:
    from gptoss_mlx.tools.browser.documents.documents import Documents
    from gptoss_mlx.tools.browser.documents.store import store_path

    begun = time.perf_counter()
    documents = Documents(folder)
    indexed = time.perf_counter() - begun
    before = time.perf_counter()
    Documents(folder).close()
    opened = time.perf_counter() - before
    ranks, seconds = [], []
    for each in QUESTIONS[name]:
        begun = time.perf_counter()
        urls = [hit.url for hit in documents.search(each["question"], 20).hits]
        seconds.append(time.perf_counter() - begun)
        ranks.append(rank(urls, each["pages"]))
    documents.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "set": name,
        "documents": len(documents),
        "questions": len(ranks),
        **{f"at_{k}": sum(r is not None and r < k for r in ranks) for k in (1, 5, 10)},
        "mrr": round(sum(1 / (r + 1) for r in ranks if r is not None) / len(ranks), 3),
        "index_seconds": round(indexed, 2),
        "reopen_seconds": round(opened, 2),
        "search_ms_median": round(sorted(seconds)[len(seconds) // 2] * 1000, 1),
        "search_ms_most": round(max(seconds) * 1000, 1),
        "store_megabytes": round(store_path(Path(folder).resolve()).stat().st_size / 1e6, 1),
        "peak_megabytes": round(peak / 1024 / (1024 if sys.platform == "darwin" else 1)),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["GPTOSS_CACHE"] = cache
        print(json.dumps(main(*sys.argv[1:3])))
