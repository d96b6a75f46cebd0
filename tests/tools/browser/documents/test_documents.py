"""A folder of documents: found, opened and cited; changes are seen, nothing outside is."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.errors import OptionError
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.documents import documents as module
from gptoss_mlx.tools.browser.documents.documents import Documents
from gptoss_mlx.tools.browser.documents.folder import Stamp
from gptoss_mlx.tools.browser.documents.store import store_path
from gptoss_mlx.tools.browser.source import BrowsingError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "docs"
    (inside / "guide").mkdir(parents=True)
    (inside / "guide" / "engines.md").write_text(
        "# Engines\n\nAn engine burns fuel.\n\n## Oil\n\nChange the oil every 5000 km.\n"
    )
    (inside / "birds.html").write_text(
        "<title>Birds</title><p>The kestrel hovers. See <a href='guide/engines.md'>engines</a>,"
        " <a href='../../secret.txt'>this</a> and <a href='https://a.test/'>that</a>."
    )
    (inside / "long.txt").write_text(
        "\n\n".join(f"Paragraph {i} speaks of nothing much. " * 8 for i in range(60))
        + "\n\nThe zebra lives here.\n"
    )
    (tmp_path / "secret.txt").write_text("secret zebra")
    return inside


def found(documents: Documents, query: str, count: int = 10) -> list[str]:
    return [hit.url for hit in documents.search(query, count).hits]


def test_a_question_is_answered_from_a_document(folder: Path, encoding: Encoding) -> None:
    """Search, open at the passage, cite: as `browser` calls of a model go."""
    tool = BrowserTool(Documents(folder), encoding)
    results = tool.call("browser.search", '{"query": "where does the zebra live?"}').text
    assert "  * 【0†long.txt†long.txt】 The zebra lives here." in results.replace("\nL", "")
    opened = tool.call("browser.open", '{"id": 0}').text
    line = next(line for line in opened.split("\n") if "The zebra lives here." in line)
    number = int(line[1:].partition(":")[0])
    assert number > 100
    (citation,) = tool.cite(f"It lives there【1†L{number}】.").citations
    assert citation.quote == "The zebra lives here."
    assert citation.file == folder / "long.txt"
    assert citation.was_shown


def test_the_best_document_is_first_and_one_may_come_more_than_once(folder: Path) -> None:
    documents = Documents(folder)
    assert found(documents, "oil change")[0] == "guide/engines.md"
    assert found(documents, "zebra paragraph") == ["long.txt"] * 3
    assert found(documents, "zebra paragraph", 1) == ["long.txt"]
    assert found(documents, "xyzzy") == []


def test_links_between_documents(folder: Path) -> None:
    documents = Documents(folder)
    page = documents.fetch("birds.html")
    assert page.text.endswith("The kestrel hovers. See 【0†engines】, this and 【1†that†a.test】.")
    assert documents.fetch(page.links[0].url).title == "Engines"
    with pytest.raises(BrowsingError, match="not web pages"):
        documents.fetch(page.links[1].url)


WRITTEN = ("guide/engines.md", "/guide/engines.md", "./guide/engines.md", "engines.md")
ALSO = ("file:///guide/engines.md", "guide%2Fengines.md", "guide/engines.md#oil", " engines.md ")


@pytest.mark.parametrize("name", WRITTEN + ALSO)
def test_a_document_is_found_by_what_a_model_writes(folder: Path, name: str) -> None:
    assert Documents(folder).fetch(name).file == folder / "guide" / "engines.md"


PARTS = st.sampled_from(["..", "secret.txt", "docs", "guide", "/", "birds.html", "%2e%2e", "~", ""])


@given(st.lists(PARTS, max_size=5))
def test_no_name_leads_out_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    top = tmp_path_factory.getbasetemp() / "opened"
    if not top.exists():
        (top / "docs" / "guide").mkdir(parents=True)
        (top / "secret.txt").write_text("secret")
        (top / "docs" / "birds.html").write_text("birds")
        (top / "docs" / "link.txt").symlink_to(top / "secret.txt")
    documents = Documents(top / "docs")
    for name in ("/".join(parts), f"file://{top}/secret.txt", "link.txt"):
        for as_source in (False, True):
            try:
                page = documents.fetch(name, as_source)
            except BrowsingError:
                continue
            assert page.file == top / "docs" / "birds.html"
            assert "secret" not in page.text
    documents.close()


def test_the_source_of_a_document(folder: Path) -> None:
    documents = Documents(folder)
    page = documents.fetch("birds.html", as_source=True)
    assert page.url == "view-source:birds.html"
    assert "<title>Birds</title>" in page.text
    (folder / "a.pdf").write_bytes(b"%PDF\0")
    with pytest.raises(BrowsingError, match="no such document"):
        documents.fetch("a.pdf", as_source=True)


def test_changes_are_seen_at_the_next_call(folder: Path) -> None:
    documents = Documents(folder)
    (folder / "new.txt").write_text("a quokka")
    assert found(documents, "quokka") == ["new.txt"]
    (folder / "new.txt").write_text("a numbat")
    assert (found(documents, "quokka"), found(documents, "numbat")) == ([], ["new.txt"])
    assert documents.fetch("new.txt").text.endswith("a numbat")
    (folder / "new.txt").rename(folder / "moved.txt")
    assert found(documents, "numbat") == ["moved.txt"]
    (folder / "moved.txt").unlink()
    assert found(documents, "numbat") == []


def test_a_change_of_the_same_size_and_time_is_seen(folder: Path) -> None:
    path = folder / "new.txt"
    path.write_text("quokka")
    status = path.stat()
    documents = Documents(folder)
    path.write_text("numbat")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert found(documents, "numbat") == ["new.txt"]


def test_a_change_that_the_clock_does_not_show_is_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that counts in days, as some do in seconds: two versions have one time."""
    now = time.time_ns()
    monkeypatch.setattr(Stamp, "of", lambda status: Stamp(status.st_size, now, now))
    (folder / "new.txt").write_text("quokka")
    documents = Documents(folder)
    (folder / "new.txt").write_text("numbat")
    assert found(documents, "numbat") == ["new.txt"]


def test_what_was_read_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (1, 1))
    monkeypatch.setattr(module, "_FRESH", -(10**18))  # nothing is too fresh to be told apart
    Documents(folder).close()
    read: list[str] = []
    take = module.read_file

    def counted(folder: Path, path: str, limit: int) -> object:
        read.append(path)
        return take(folder, path, limit)

    monkeypatch.setattr(module, "read_file", counted)
    documents = Documents(folder)
    assert (read, len(documents)) == ([], 3)
    assert found(documents, "kestrel") == ["birds.html"]
    (folder / "birds.html").write_text("an osprey")
    assert found(documents, "osprey") == ["birds.html"]
    assert read == ["birds.html"]


def test_another_process_has_read_the_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH", -(10**18))
    one, other = Documents(folder), Documents(folder)
    (folder / "new.txt").write_text("a quokka")
    assert found(one, "quokka") == found(other, "quokka") == ["new.txt"]


def test_the_store_is_private_and_its_loss_is_nothing(folder: Path) -> None:
    documents = Documents(folder)
    path = store_path(folder)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    documents.close()
    for damage in (b"garbage" * 1000, b"", path.read_bytes()[:5000]):
        path.write_bytes(damage)
        damaged = Documents(folder)
        assert found(damaged, "kestrel") == ["birds.html"]
        damaged.close()


def test_a_store_that_breaks_while_it_is_used(folder: Path) -> None:
    documents = Documents(folder)
    content = store_path(folder).read_bytes()
    store_path(folder).write_bytes(content[:4096] + os.urandom(len(content) - 4096))
    assert found(documents, "kestrel") == ["birds.html"]
    documents.close()
    again = Documents(folder)
    assert found(again, "kestrel") == ["birds.html"]


def test_a_store_in_use_is_not_waited_for_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptoss_mlx.tools.browser.documents.store._WAIT", 0.05)
    Documents(folder).close()
    holder = sqlite3.connect(store_path(folder))
    holder.execute("BEGIN EXCLUSIVE")
    documents = Documents(folder)
    assert found(documents, "kestrel") == ["birds.html"]
    holder.close()


def test_stores_that_nobody_opens_are_removed(folder: Path) -> None:
    Documents(folder / "guide").close()
    Documents(folder).close()
    os.utime(store_path(folder / "guide"), (1, 1))
    os.utime(store_path(folder), (1, 1))
    Documents(folder).close()
    assert store_path(folder).exists()
    assert not store_path(folder / "guide").exists()


def test_conversations_share_the_documents(folder: Path) -> None:
    """Threads search and open while files change."""
    documents = Documents(folder)

    def ask(number: int) -> list[str]:
        for turn in range(10):
            (folder / f"{number}.txt").write_text(f"quokka {number} " * (turn + 1))
            documents.fetch("birds.html")
        return found(documents, f"quokka {number}")

    with ThreadPoolExecutor(4) as pool:
        assert [urls[0] for urls in pool.map(ask, range(4))] == [f"{n}.txt" for n in range(4)]


def test_without_a_cache_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("GPTOSS_CACHE", str(folder.parent / "file"))
    assert found(Documents(folder), "kestrel") == ["birds.html"]


def test_what_cannot_be_read_is_named_and_the_rest_is_found(
    folder: Path, encoding: Encoding
) -> None:
    (folder / "bad.docx").write_bytes(b"no zip")
    (folder / "link.txt").symlink_to(folder / "birds.html")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    documents = Documents(folder)
    assert dict(documents.left_out) == {
        "bad.docx": "not a Word file",
        "link.txt": "a symbolic link, which is not followed",
    }
    tool = BrowserTool(documents, encoding)
    shown = tool.call("browser.search", '{"query": "kestrel"}').text
    assert "Note: 2 files are left out:" in shown
    assert "bad.docx (not a Word file)" in shown.replace("\n", "")
    assert Documents(folder).left_out == documents.left_out  # from the store


def test_a_library_that_is_installed_later_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pypdf")
    from tests.tools.browser.documents.test_extract import pdf

    (folder / "a.pdf").write_bytes(pdf(["a quokka"]))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pypdf", None)
        documents = Documents(folder)
        assert found(documents, "quokka") == []
        assert "pip install" in documents.left_out["a.pdf"]
        patch.setattr(module, "read_file", lambda *_: pytest.fail("a refused file is read again"))
        patch.setattr(module, "_FRESH", -(10**18))
        assert found(documents, "quokka") == []
    later = Documents(folder)
    assert found(later, "quokka") == ["a.pdf"]
    assert later.left_out == {}


def test_limits_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_LIMIT", 200)
    assert Documents(folder).left_out["long.txt"] == "larger than 200 bytes, the limit for it"
    monkeypatch.undo()
    monkeypatch.setattr(module, "ALL_TEXT_LIMIT", 300)
    limited = Documents(folder.parent / "docs" / "guide")
    assert limited.left_out == {}
    (folder / "guide" / "more.txt").write_text("x " * 150)
    limited.refresh()
    assert limited.left_out["more.txt"] == "beyond 300 characters, the limit for all"
    (folder / "guide" / "engines.md").unlink()
    assert found(limited, "x") == ["more.txt"]  # there is room now
    monkeypatch.undo()
    monkeypatch.setattr(module, "FILES_LIMIT", 2)
    with pytest.raises(OptionError, match="has more than 2 files, the limit for documents"):
        Documents(folder)


def test_progress_counts_what_is_read(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    Documents(folder, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_an_interrupted_index_is_not_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COMMIT", 1)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Documents(folder, interrupt)
    with sqlite3.connect(store_path(folder)) as store:
        assert store.execute("SELECT count(*) FROM texts").fetchone() == (2,)
    assert len(Documents(folder)) == 3


def test_a_folder_that_is_none(folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", folder / "birds.html"):
        with pytest.raises(OptionError, match="is not a folder of documents"):
            Documents(path)


def test_a_folder_that_goes_away_is_told_to_the_model(folder: Path) -> None:
    documents = Documents(folder)
    folder.rename(folder.parent / "gone")
    with pytest.raises(BrowsingError, match="cannot be read any more"):
        documents.search("kestrel", 1)


def test_names_that_no_one_can_type(folder: Path, encoding: Encoding) -> None:
    """Each name of bytes is a document; two that look alike are told apart."""
    os.close(os.open(os.fsencode(folder) + b"/caf\xe9 quokka.txt", os.O_CREAT | os.O_WRONLY))
    for name in ("two\nquokka.txt", "two quokka.txt"):
        (folder / name).write_text(f"quokka {name!r}")
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9 quokka.txt"))).write_text("quokka")
    documents = Documents(folder)
    names = sorted(found(documents, "quokka"))
    assert names == ["caf\ufffd quokka.txt", "two quokka.txt", "two quokka.txt (2)"]
    texts = {documents.fetch(name).text for name in names}
    assert len(texts) == 3
    tool = BrowserTool(documents, encoding)
    assert not tool.call("browser.open", json.dumps({"id": names[0]})).failed
