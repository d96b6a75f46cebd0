"""The folder: what is listed, and that nothing outside of it is ever read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.browser.documents.folder import list_files, read_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a secret beside it."""
    (tmp_path / "secret.txt").write_text("secret")
    inside = tmp_path / "docs"
    (inside / "sub").mkdir(parents=True)
    (inside / "a.txt").write_text("a")
    (inside / "sub" / "b.txt").write_text("b")
    return inside


def listed(folder: Path) -> dict[str, str]:
    return {file.path: file.trouble for file in list_files(folder)}


def test_files_are_listed_by_name(folder: Path) -> None:
    for skipped in (".git", "node_modules", "__pycache__"):
        (folder / skipped).mkdir()
        (folder / skipped / "x.txt").write_text("x")
    (folder / ".hidden.txt").write_text("x")
    os.mkfifo(folder / "pipe.txt")
    assert listed(folder) == {"a.txt": "", "sub/b.txt": ""}


def test_links_are_named_and_not_followed(folder: Path) -> None:
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "up").symlink_to(folder.parent)
    (folder / "loop").symlink_to(folder)
    why = "a symbolic link, which is not followed"
    assert listed(folder) == {
        "a.txt": "",
        "sub/b.txt": "",
        "link.txt": why,
        "up": why,
        "loop": why,
    }
    for path in ("link.txt", "up/secret.txt", "loop/a.txt"):
        with pytest.raises(OSError, match=r".*"):
            read_file(folder, path, 100)


def test_a_folder_that_becomes_a_link_is_not_followed(folder: Path) -> None:
    (folder.parent / "b.txt").write_text("secret")
    (folder / "sub").rename(folder.parent / "gone")
    (folder / "sub").symlink_to(folder.parent)
    with pytest.raises(OSError, match=r".*"):
        read_file(folder, "sub/b.txt", 100)


NAMES = st.sampled_from(["..", ".", "", "sub", "a.txt", "b.txt", "secret.txt", "/", "docs", "~"])


@given(st.lists(NAMES, max_size=6), st.booleans())
def test_no_path_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], absolute: bool
) -> None:
    top = tmp_path_factory.getbasetemp() / "contained"
    if not top.exists():
        (top / "docs" / "sub").mkdir(parents=True)
        (top / "secret.txt").write_text("secret")
        (top / "docs" / "a.txt").write_text("a")
        (top / "docs" / "sub" / "b.txt").write_text("b")
    path = ("/" if absolute else "") + "/".join(names)
    try:
        data, _ = read_file(top / "docs", path, 100)
    except OSError:
        return
    assert data in (b"a", b"b")
    with pytest.raises(OSError, match=r".*"):
        read_file(top / "docs", str(top / "secret.txt"), 100)


def test_a_file_is_read_up_to_its_limit(folder: Path) -> None:
    assert read_file(folder, "a.txt", 1)[0] == b"a"
    (folder / "a.txt").write_text("aa")
    with pytest.raises(OSError, match="larger than 1 bytes, the limit for it"):
        read_file(folder, "a.txt", 1)
    with pytest.raises(OSError, match=r".*"):
        read_file(folder, "sub", 100)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.txt")
    with pytest.raises(OSError, match="not a regular file"):
        read_file(folder, "pipe.txt", 100)
