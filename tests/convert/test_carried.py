"""Files that come along with the weights: known names from the model's own folder, no others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from convert import source as sources
from tests.convert.layouts import write_mlx_lm
from tests.convert.results import contents, convert, refusal, run

CARRIED = (
    "LICENSE",
    "LICENSE-MODEL.txt",
    "NOTICE.md",
    "README.md",
    "USAGE_POLICY",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
OTHERS = ("notes.txt", "id_rsa", "tokenizer.py", "click.py", "LICENSE.partial", ".env", "model.bin")


@pytest.fixture
def source(release: Path, tmp_path: Path) -> Path:
    """A released folder, for a test to put files into."""
    return Path(shutil.copytree(release, tmp_path / "source"))


def test_known_names_come_along_and_no_others(source: Path, tmp_path: Path) -> None:
    for name in (*CARRIED, *OTHERS):
        (source / name).write_bytes(name.encode())
    for made in (
        convert(source, tmp_path / "mlx", "8"),
        convert(source, tmp_path / "release", target="release"),
        convert(write_mlx_lm_with(source, tmp_path / "mlx-lm"), tmp_path / "of mlx-lm"),
    ):
        found = contents(made)
        assert {name: found[name] for name in CARRIED} == {n: n.encode() for n in CARRIED}
        assert not set(OTHERS) & set(found)


def write_mlx_lm_with(source: Path, folder: Path) -> Path:
    write_mlx_lm(source, folder)
    for name in (*CARRIED, *OTHERS):
        shutil.copy(source / name, folder)
    return folder


def _link(elsewhere: Path, place: Path) -> None:
    place.symlink_to(elsewhere / "secret")


def _long_way(elsewhere: Path, place: Path) -> None:
    """Through a link in the folder itself."""
    (place.parent / "docs").symlink_to(elsewhere)
    place.symlink_to("docs/secret")


def _up(elsewhere: Path, place: Path) -> None:
    place.symlink_to(Path("..") / elsewhere.name / "secret")


@pytest.mark.parametrize("put", [_link, _long_way, _up])
@pytest.mark.parametrize("name", ["README.md", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused(
    put: Callable[[Path, Path], None], name: str, source: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("root:x:0:0", encoding="utf-8")
    (source / name).unlink(missing_ok=True)
    put(elsewhere, source / name)
    for more in ((), ("--dry-run",)):
        line = refusal(source, tmp_path / "made", *more)
        assert line.startswith(f"{source / name}: is a link to '")
        assert line.endswith("outside the model's folder; put the file itself there")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("put", "told"),
    [
        (os.mkfifo, "a named pipe, not a regular file"),
        (os.mkdir, "a folder, not a file"),
        (lambda place: place.symlink_to(place.name), "cannot be read: "),
        (lambda place: place.symlink_to("gone"), "No such file or directory"),
    ],
)
def test_what_is_no_file_is_refused(
    put: Callable[[Path], None], told: str, source: Path, tmp_path: Path
) -> None:
    put(source / "README.md")
    line = refusal(source, tmp_path / "made")
    assert line.startswith(f"{source / 'README.md'}: ")
    assert told in line


def test_links_within_the_folder_and_a_link_to_it_are_followed(
    source: Path, tmp_path: Path
) -> None:
    (source / "README.en.txt").write_text("words", encoding="utf-8")
    (source / "README.md").symlink_to("README.en.txt")
    (tmp_path / "link").symlink_to(source)
    made = convert(tmp_path / "link", tmp_path / "made")
    assert not (made / "README.md").is_symlink()
    assert (made / "README.md").read_text(encoding="utf-8") == "words"


def test_a_snapshot_in_the_hugging_face_cache_is_its_files(
    release: Path, source: Path, tmp_path: Path
) -> None:
    """Every file there is a link to the model's blobs; another model's are not its own."""
    (source / "LICENSE").write_text("mine", encoding="utf-8")
    model = tmp_path / "hub" / "models--openai--gpt-oss-20b"
    snapshot = model / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for i, path in enumerate(sorted(source.iterdir())):
        shutil.copy(path, model / "blobs" / str(i))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(i))
    made = convert(snapshot, tmp_path / "made", target="release")
    assert contents(made) == contents(source)
    assert not any(path.is_symlink() for path in made.iterdir())
    other = tmp_path / "hub" / "models--other" / "blobs"
    other.mkdir(parents=True)
    (other / "0").write_text("another's", encoding="utf-8")
    (snapshot / "README.md").symlink_to(other / "0")
    assert "outside the model's folder" in refusal(snapshot, tmp_path / "again")


def test_all_of_them_together_have_a_limit(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_CARRIED_LIMIT", 2000)
    for name in ("LICENSE", "README.md"):
        (source / name).write_bytes(bytes(1200))
    line = refusal(source, tmp_path / "made")
    assert "larger than" in line
    (source / "README.md").unlink()
    assert run(source, tmp_path / "made").exit_code == 0
