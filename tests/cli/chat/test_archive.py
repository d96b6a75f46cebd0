"""Saved conversations: whole or as before, private, never lost to another program or to damage."""

from __future__ import annotations

import datetime
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.cli.chat.archive import Archive, Saved
from gptoss_mlx.cli.chat.transcript import Transcript
from gptoss_mlx.errors import SessionError
from tests.files.test_atomic import Failing
from tests.root import ROOT

DAY = datetime.date(2026, 11, 24)
ANSWER = {"role": "assistant", "content": "85", "reasoning": "Add."}
TALK = Transcript(system="Be brief.", reasoning="low", options={"seed": 1, "logit_bias": {7: -1.5}})
TALK = TALK.with_message("What is 27 + 58?").with_answer(ANSWER)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "data" / "conversations")


def test_what_is_saved_is_read_again(archive: Archive) -> None:
    saved = archive.write(Saved("sum"), TALK)
    assert archive.read("sum") == (TALK, saved)
    assert archive.write(saved, TALK.with_message("And 3?")).name == "sum"
    assert archive.read("sum")[0].last_message == "And 3?"


def test_folder_and_files_are_private(archive: Archive) -> None:
    os.umask(os.umask(0o022))
    archive.write(Saved("sum"), TALK)
    assert stat.S_IMODE(archive.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in archive.folder.iterdir()} == {0o600}


def test_names_come_from_the_day_and_the_first_words(archive: Archive) -> None:
    name = archive.new_name("  Why is the sky /blue/..? \x1b[0m", DAY)
    assert name == "2026-11-24-why-is-the-sky-blue-0m"
    archive.write(Saved(name), TALK)
    assert archive.new_name("why is the sky blue 0M", DAY) == f"{name}-2"
    assert archive.new_name("漢字", DAY) == "2026-11-24-chat"


@pytest.mark.parametrize(
    "name", ["", "../up", "a/b", ".hidden", "a\0b", "-x", "n" * 81, "a b", "ä"]
)
def test_a_name_is_no_path(archive: Archive, name: str) -> None:
    for use in (archive.read, archive.delete, archive.holds):
        with pytest.raises(SessionError, match="is no name"):
            use(name)
    with pytest.raises(SessionError, match="is no name"):
        archive.write(Saved(name), TALK)


def test_the_last_used_comes_first(archive: Archive) -> None:
    with pytest.raises(SessionError, match="no conversation is saved in"):
        archive.last()
    for age, name in enumerate(("new", "old", "older")):
        archive.write(Saved(name), TALK)
        os.utime(archive.folder / f"{name}.json", (1000 - age, 1000 - age))
    (archive.folder / "broken.json").write_text("{")
    os.utime(archive.folder / "broken.json", (1, 1))
    assert archive.last() == "new"
    listed = archive.listed()
    assert [one.name for one in listed] == ["new", "old", "older", "broken"]
    assert (listed[0].turns, listed[0].title) == (1, "What is 27 + 58?")
    assert "not valid JSON" in (listed[3].damage or "")


def test_an_error_at_any_call_keeps_the_conversation(archive: Archive) -> None:
    saved = archive.write(Saved("sum"), TALK)
    longer = TALK.with_message("And 3?").with_answer(ANSWER)
    for at in range(60):
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, at)
            try:
                written = archive.write(saved, longer)
            except SessionError:
                written = None
        held, _ = archive.read("sum")
        assert held in (TALK, longer)
        if not failing.came:
            break
        assert (held == longer) == (written is not None)
        saved = archive.write(written or saved, TALK)
    assert written is not None
    assert archive.names() == ["sum"]
    left = [path.name for path in archive.folder.iterdir() if path.name.endswith(".tmp")]
    assert left == []


def test_what_another_program_wrote_is_never_replaced(archive: Archive) -> None:
    archive.write(Saved("sum"), TALK)
    mine, yours = archive.read("sum")[1], archive.read("sum")[1]
    first, second = TALK.with_message("mine"), TALK.with_message("yours")
    assert archive.write(mine, first).name == "sum"
    apart = archive.write(yours, second)
    assert apart.name == "sum-2"
    assert archive.write(apart, second).name == "sum-2"
    assert archive.read("sum")[0] == first
    assert archive.read("sum-2")[0] == second


def test_what_was_deleted_meanwhile_is_saved_under_its_name(archive: Archive) -> None:
    saved = archive.write(Saved("sum"), TALK)
    archive.delete("sum")
    assert archive.write(saved, TALK).name == "sum"
    with pytest.raises(SessionError, match="no conversation is saved as gone"):
        archive.delete("gone")


WRITER = """
import sys
import tempfile
from pathlib import Path
from gptoss_mlx.cli.chat.archive import Archive
archive = Archive(Path(sys.argv[1]))
transcript, saved = archive.read("sum")
print("ready", flush=True)
sys.stdin.readline()
for number in range(5):
    transcript = transcript.with_message(f"{sys.argv[2]} {number}")
    saved = archive.write(saved, transcript)
"""


def test_programs_at_once_lose_no_turn(archive: Archive) -> None:
    archive.write(Saved("sum"), TALK)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(archive.folder), str(number)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    said = [
        [message["content"] for message in archive.read(name)[0].messages[2:]]
        for name in archive.names()
    ]
    assert sorted(said) == [[f"{n} {number}" for number in range(5)] for n in range(3)]


whole = json.dumps(TALK.as_json(), indent=1).encode()


@given(st.integers(0, len(whole)), st.integers(0, 40), st.binary(max_size=8))
def test_damaged_bytes_are_one_line_and_the_file_is_left(at: int, cut: int, put: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive, damaged = Archive(Path(folder)), whole[:at] + put + whole[at + cut :]
        path = Path(folder) / "sum.json"
        path.write_bytes(damaged)
        said = f"{path}: nothing"
        try:
            archive.read("sum")
        except SessionError as error:
            said = str(error)
        assert said.startswith(str(path))
        assert "\n" not in said
        archive.listed()
        assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format is 2"),
        ({"extra": 1}, "'extra' is not understood"),
        ({"messages": {}}, "messages must be a list"),
        ({"messages": [{"role": "king"}]}, "role 'king' is unknown"),
        ({"messages": [{"role": "user", "content": 7}]}, "content must be"),
        ({"system": 7}, "system is 7"),
        ({"reasoning_effort": "huge"}, "reasoning_effort is 'huge'"),
        ({"options": {"temprature": 1}}, "'temprature' is no sampling option"),
        ({"options": {"temperature": -1}}, "temperature is -1"),
        ({"options": {"max_tokens": 0}}, "max_tokens is 0"),
        ({"options": {"stop": [""]}}, "stop is"),
        ({"options": {"logit_bias": {"x": 1}}}, "logit_bias must map"),
    ],
)
def test_what_a_file_may_not_say_is_named(
    archive: Archive, change: dict[str, object], said: str
) -> None:
    archive.folder.mkdir(parents=True)
    (archive.folder / "sum.json").write_text(json.dumps(TALK.as_json() | change))
    with pytest.raises(SessionError, match=r"sum\.json: .*" + said.replace("'", ".")):
        archive.read("sum")


def test_a_pipe_is_no_conversation(archive: Archive) -> None:
    archive.folder.mkdir(parents=True)
    os.mkfifo(archive.folder / "sum.json")
    with pytest.raises(SessionError, match="a named pipe, not a regular file"):
        archive.read("sum")
    assert archive.write(Saved("sum"), TALK).name == "sum-2"


def test_what_a_killed_program_left_is_removed_an_hour_later(archive: Archive) -> None:
    archive.write(Saved("sum"), TALK)
    for name, age in (("old", 7200), ("new", 10)):
        path = archive.folder / f".{name}-0.tmp"
        path.touch()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    archive.write(Saved("other"), TALK)
    left = sorted(path.name for path in archive.folder.iterdir())
    assert left == [".lock", ".new-0.tmp", "other.json", "sum.json"]
    assert sorted(archive.names()) == ["other", "sum"]
