"""Files that code made for us to trip over: none is followed, opened or believed."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_mlx.tools.python.folder import opened
from gptoss_mlx.tools.python.limits import Limits
from tests.tools.python.conftest import SMALL, Make

pytestmark = pytest.mark.timeout(60)


def kept(folder: Path) -> dict[str, str]:
    """All that lies in a folder: a file's text, or what else it is."""
    found = {}
    for path in sorted(folder.rglob("*")):
        is_plain = path.is_file() and not path.is_symlink()
        text = path.read_text(encoding="utf-8", errors="replace") if is_plain else "not a file"
        if not path.is_dir() or path.is_symlink():
            found[str(path.relative_to(folder))] = text
    return found


PLANTED = {
    "a link to a file": "os.symlink('{secret}', 'stolen.txt')",
    "a link to a folder": "os.symlink('{home}', 'home')",
    "a link to itself": "os.symlink('loop', 'loop')",
    "a link in /proc": "os.symlink('/proc/self/root', 'root')",
    "a folder that was replaced by a link": (
        "os.mkdir('d'); open('d/secret', 'w').close(); os.rename('d', 'e')\n"
        "os.symlink('{home}', 'd'); os.remove('e/secret')"
    ),
    "a pipe": "os.mkfifo('pipe')",
    "a socket": "import socket; s = socket.socket(socket.AF_UNIX); s.bind('socket')",
    "a name that is no UTF-8": "open(b'\\xff\\xfe', 'w').close()",
    "a name with a new line": "open('a\\nb', 'w').close()",
    "a name that a terminal obeys": "open('\\x1b]0;x\\x07', 'w').close()",
    "a name that is written from right to left": "open('a\\u202efdp.exe', 'w').close()",
    "a name that a shell expands": "open('~root', 'w').close()",
    "a hidden file": "open('.bashrc', 'w').write('x')",
    "folders as deep as a name may be long": (
        "for _ in range(40): os.mkdir('d'); os.chdir('d')\nopen('deep', 'w').close()"
    ),
    "a file that cannot be read": "open('closed', 'w').close(); os.chmod('closed', 0)",
    "a folder that cannot be read": "os.mkdir('closed'); os.chmod('closed', 0)",
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_no_plain_file_is_left_where_it_is(name: str, make: Make, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("the secret", encoding="utf-8")
    code = PLANTED[name].replace("{secret}", str(home / "secret")).replace("{home}", str(home))
    tool = make()
    said = tool.call("python", f"import os\n{code}\nopen('/mnt/data/good.txt', 'w').write('good')")
    assert not said.failed, said.text
    others = {file: text for file, text in kept(tool.folder).items() if file != "closed"}
    assert others == {"good.txt": "good"}
    assert {file.name for file in said.files} - {"closed"} == {"good.txt"}
    assert kept(home) == {"secret": "the secret"}


def test_a_file_that_becomes_a_link_is_not_written_through(make: Make, tmp_path: Path) -> None:
    """Nor the one that a person has put in its place outside."""
    victim = tmp_path / "victim"
    victim.write_text("the victim's", encoding="utf-8")
    tool = make()
    tool.call("python", "open('note.txt', 'w').write('one')")
    (tool.folder / "note.txt").unlink()
    (tool.folder / "note.txt").symlink_to(victim)
    said = tool.call("python", "open('note.txt', 'w').write('two')")
    assert said.files == (tool.folder / "note.txt",)
    assert kept(tool.folder) == {"note.txt": "two"}
    assert victim.read_text(encoding="utf-8") == "the victim's"


def test_a_folder_that_is_a_link_outside_is_not_written_through(make: Make, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    tool = make()
    (tool.folder / "d").symlink_to(tmp_path / "elsewhere")
    said = tool.call("python", "import os; os.mkdir('d'); open('d/x', 'w').write('x')")
    assert said.files == ()
    assert "1 files were not kept" in said.text
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_comes_out_is_bounded_though_files_change_while_they_are_copied(make: Make) -> None:
    limits = replace(SMALL, folder=4 << 20, file=2 << 20)
    tool = make(limits)
    said = tool.call(
        "python",
        "import os\nfor i in range(3):\n    os.truncate(open(f'sparse{i}', 'w').name, 2 << 20)",
    )
    assert len(said.files) == 2
    assert "1 files were not kept" in said.text
    assert sum(file.stat().st_size for file in tool.folder.iterdir()) <= limits.folder


@pytest.mark.parametrize("name", ["link", "there/secret", "pipe", "home"])
def test_one_that_becomes_a_link_after_it_was_listed_is_not_opened(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").touch()
    (tmp_path / "link").symlink_to("home/secret")
    (tmp_path / "there").symlink_to("home")
    os.mkfifo(tmp_path / "pipe")
    root = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match=r"[Nn]ot a|Too many") as caught, opened(root, name):
        pass
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.EISDIR)
    with opened(root, "home/secret"):
        os.close(root)


def test_files_have_no_right_to_run(make: Make) -> None:
    said = make().call(
        "python", "import os; open('run', 'w').write('#!/bin/sh'); os.chmod('run', 0o6777)"
    )
    (file,) = said.files
    assert file.stat().st_mode & 0o7111 == 0


def test_a_file_appears_in_whole_or_not_at_all(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full while it is copied: the former one stays, and nothing is left beside it."""
    tool = make(Limits(wall=20))
    tool.call("python", "open('note.txt', 'w').write('one')")
    written = os.write

    def full(descriptor: int, data: bytes) -> int:
        if b"two" in data:
            raise OSError(28, "No space left on device")
        return written(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        said = tool.call("python", "x = 't' + 'wo'; open('note.txt', 'w').write(x);")
    assert said.text == "[files cannot be kept: No space left on device]"
    assert said.files == ()
    assert kept(tool.folder) == {"note.txt": "one"}


def test_files_of_many_calls_are_bounded_together(make: Make) -> None:
    """Though the code removes those of each call inside."""
    limits = replace(SMALL, folder=4 << 20, file=2 << 20)
    tool = make(limits)
    kept_files = []
    for i in range(4):
        code = f"import os; os.truncate(open('{i}', 'w').name, 3 << 19)"
        kept_files += tool.call("python", code).files
        tool.call("python", f"os.remove('{i}')")
    assert [file.name for file in kept_files] == ["0", "1"]
    said = tool.call("python", "open('0', 'w').write('less');")  # what it replaces makes room
    assert [file.name for file in said.files] == ["0"]


def test_a_folder_that_a_person_removed_is_made_again(make: Make) -> None:
    tool = make()
    tool.folder.rmdir()
    assert [file.name for file in tool.call("python", "open('a', 'w');").files] == ["a"]
