"""Commands after a slash: what each does, and one line where it cannot."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import gptoss_mlx
from gptoss_mlx.cli.chat.commands import (
    COMMANDS,
    COPY_LIMIT,
    FILE_LIMIT,
    begins_command,
    run_command,
)
from gptoss_mlx.cli.chat.dialogue import take
from gptoss_mlx.cli.chat.transcript import Transcript
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.generate import main as generate
from tests.support.scripted_engine import ScriptedEngine
from tests.support.talks import Talking, answer

Begin = Callable[..., Talking]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    return lambda *replies, **options: Talking(tmp_path, *replies, **options)


def contents(talking: Talking) -> list[Any]:
    return [message["content"] for message in talking.talk.transcript.messages]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *(("/help", True), ("/set a 1", True), ("/usr/bin is what?", False), ("//help", False)),
        *(("/", False), ("a /help", False), ("", False), ("/system\nmany\nlines", True)),
    ],
)
def test_a_path_is_a_message(line: str, expected: bool) -> None:
    assert begins_command(line) is expected


def test_two_slashes_begin_a_message_with_one(begin: Begin) -> None:
    talking = begin(answer("a command"))
    take(talking.talk, "//help")
    assert contents(talking) == ["/help", "a command"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/hlep", "'/hlep' is no command: did you mean /help?"),
        ("/sesions", "did you mean /sessions?"),
        ("/xyzzy", "'/xyzzy' is no command: /help lists what there is"),
        ("/retry", "there is no message yet"),
        ("/undo", "there is no message yet"),
        ("/edit", "there is no message yet"),
        ("/copy", "there is no answer to copy"),
        ("/stats", "there is no answer yet"),
        ("/trim", "there is no turn but the last"),
        ("/reasoning huge", "must be low, medium or high"),
        ("/set colour red", "'colour' cannot be set, only temperature"),
        ("/set temperature warm", "temperature is 'warm', but must be a number or default"),
        ("/set temperature -1", "temperature is -1.0, but must be from 0 to 100"),
        ("/set max_tokens 0", "max_tokens is 0, but must be above 0"),
        ("/save", "write /save NAME"),
        ("/save ../up", "is no name"),
        ("/load gone", "no conversation is saved as gone"),
        ("/delete gone", "no conversation is saved as gone"),
        ("/export out.json", "there is no message to export"),
        ("/file /nowhere", "/nowhere: cannot be read: No such file"),
        ("/file /dev/null", "a device, not a regular file"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    begin: Begin, line: str, said: str
) -> None:
    talking = begin()
    with pytest.raises(GptOssError) as caught:
        run_command(talking.talk, line)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert talking.talk.transcript == Transcript()


def test_help_names_every_command(begin: Begin) -> None:
    talking = begin()
    run_command(talking.talk, "/?")
    said = talking.said
    assert all(f"{command.usage} " in said for command in COMMANDS.values())


def test_settings_reach_the_model_and_are_shown(begin: Begin) -> None:
    talking = begin(answer("1"), answer("2"))
    for line in ("/set temperature 0.5", "/set top-k 7", "/set seed 3", "/set max_tokens 50"):
        run_command(talking.talk, line)
    run_command(talking.talk, "/system Be brief.\nVery.")
    run_command(talking.talk, "/reasoning high")
    talking.talk.ask("Hi")
    sampling, seed, _ = talking.scripted.samplings[0]
    assert (sampling.temperature, sampling.top_k, seed) == (0.5, 7, 3)
    assert "Be brief.\nVery." in talking.prompts[0]
    assert "Reasoning: high" in talking.prompts[0]
    talking.said  # noqa: B018
    run_command(talking.talk, "/set")
    assert "temperature          0.5" in talking.said
    for line in ("/set temperature default", "/system off"):
        run_command(talking.talk, line)
    talking.talk.ask("Hi")
    assert talking.scripted.samplings[1][0].temperature == 1.0
    assert "Be brief." not in talking.prompts[1]


def test_the_last_reasoning_is_unfolded(begin: Begin) -> None:
    talking = begin(answer("85", "Add them."), answer("88"))
    run_command(talking.talk, "/reasoning")
    talking.talk.ask("Hi")
    talking.talk.ask("Hi again")
    run_command(talking.talk, "/reasoning")
    assert talking.said == "no answer has reasoning\nAdd them.\n"


def test_retry_undo_and_edit_replace_the_last_turn(begin: Begin) -> None:
    talking = begin(answer("1"), answer("2"), answer("3"), answer("4"))
    talk = talking.talk
    talk.ask("first")
    talk.ask("second")
    run_command(talk, "/retry")
    assert contents(talking) == ["first", "1", "second", "3"]
    talk.edit = lambda text: text.upper() + "\n"
    run_command(talk, "/edit")
    assert contents(talking) == ["first", "1", "SECOND", "4"]
    talk.edit = lambda text: None
    run_command(talk, "/edit")
    run_command(talk, "/undo")
    assert contents(talking) == ["first", "1"]
    assert talk.saved is not None
    assert talk.archive.read(talk.saved.name)[0] == talk.transcript


def test_a_retry_that_fails_keeps_the_answer(begin: Begin) -> None:
    talking = begin(answer("1"), answer("2"))
    talking.talk.ask("first")
    talking.scripted.fail("read", 2, RuntimeError("a step fails"))
    with pytest.raises(RuntimeError):
        run_command(talking.talk, "/retry")
    assert contents(talking) == ["first", "1"]


def test_trim_drops_the_oldest_turns_until_half_is_free(begin: Begin) -> None:
    talking = begin(*[answer("word " * 20) for _ in range(5)], context=260)
    for number in range(5):
        talking.talk.ask(f"Question {number}")
    run_command(talking.talk, "/trim 1")
    assert contents(talking)[0] == "Question 1"
    assert "dropped 1 turn; " in talking.said
    run_command(talking.talk, "/trim")
    assert contents(talking)[-2] == "Question 4"
    assert talking.talk.used <= 130
    with pytest.raises(GptOssError, match="trim is '9'"):
        run_command(begin(transcript=_turns(3)).talk, "/trim 9")


def _turns(count: int) -> Transcript:
    transcript = Transcript()
    for number in range(count):
        transcript = transcript.with_message(f"Question {number}").with_answer(
            {"role": "assistant", "content": "Answer"}
        )
    return transcript


def test_conversations_are_saved_loaded_listed_and_deleted(begin: Begin) -> None:
    talking = begin(answer("1"), answer("2"))
    talk = talking.talk
    talk.ask("first")
    run_command(talk, "/save mine")
    run_command(talk, "/new")
    assert contents(talking) == []
    talk.ask("second")
    talking.said  # noqa: B018
    run_command(talk, "/sessions")
    listed = talking.said
    assert "mine" in listed
    assert "1 turn  second" in listed
    with pytest.raises(GptOssError, match="mine is another conversation"):
        run_command(talk, "/save mine")
    run_command(talk, "/load mine")
    assert contents(talking) == ["first", "1"]
    with pytest.raises(GptOssError, match="mine is this conversation"):
        run_command(talk, "/delete mine")
    run_command(talk, "/new")
    run_command(talk, "/delete mine")
    assert "mine" not in talk.archive.names()


def test_a_damaged_one_is_listed_and_left(begin: Begin) -> None:
    talking = begin()
    talking.talk.archive.folder.mkdir()
    path = talking.talk.archive.folder / "broken.json"
    path.write_bytes(b"\xff{")
    run_command(talking.talk, "/sessions")
    assert "is not valid JSON" in talking.said
    with pytest.raises(GptOssError, match=r"broken\.json: is not valid JSON"):
        run_command(talking.talk, "/load broken")
    assert path.read_bytes() == b"\xff{"


def test_an_export_is_read_by_generate(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talking = begin(answer("85", "Add."))
    run_command(talking.talk, "/system Be brief.")
    run_command(talking.talk, "/reasoning low")
    talking.talk.ask("grün \u2028?")
    path = tmp_path / "out.json"
    run_command(talking.talk, f"/export {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(GptOssError, match=r"out\.json: exists"):
        run_command(talking.talk, f"/export {path}")
    engine = ScriptedEngine([["final", None, "88"]])
    monkeypatch.setattr(gptoss_mlx, "load", engine.load)
    assert CliRunner().invoke(generate, ["--messages", str(path), "And 3?"]).stdout == "88\n"
    (messages, options), *_ = engine.asked
    assert options == {"reasoning": "low"}
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert json.loads(path.read_text())["messages"][1]["content"] == "grün \u2028?"


def test_a_file_goes_with_the_next_message(begin: Begin, tmp_path: Path) -> None:
    talking = begin(answer("read"), answer("again"))
    (tmp_path / "notes.md").write_text("\ufeffA ```fence```\n", encoding="utf-8")
    run_command(talking.talk, f"/file {tmp_path / 'notes.md'}")
    talking.talk.ask("Sum it up")
    talking.talk.ask("Again")
    first = "notes.md:\n\n````\nA ```fence```\n````\n\nSum it up"
    assert contents(talking) == [first, "read", "Again", "again"]


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"a\0b", b"x" * (FILE_LIMIT + 1)])
def test_only_text_of_some_size_can_be_added(begin: Begin, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    talking = begin()
    with pytest.raises(GptOssError, match=r"is not UTF-8 text|larger than"):
        run_command(talking.talk, f"/file {tmp_path / 'file'}")
    assert talking.talk.attached == []


def test_copy_sends_the_answer_to_the_clipboard(begin: Begin) -> None:
    talking = begin(answer("grün"))
    talking.talk.ask("Hi")
    with pytest.raises(GptOssError, match="there is no terminal"):
        run_command(talking.talk, "/copy")
    talking.talk.err.terminal = True
    run_command(talking.talk, "/copy")
    code = base64.b64encode("grün".encode()).decode()
    assert talking.said.startswith(f"\x1b]52;c;{code}\x07")
    long = {"role": "assistant", "content": "w" * COPY_LIMIT}
    talking.talk.transcript = talking.talk.transcript.with_answer(long)
    with pytest.raises(GptOssError, match="bytes of base64, but a terminal's clipboard takes"):
        run_command(talking.talk, "/copy")


def test_context_and_stats_are_tables(begin: Begin) -> None:
    talking = begin(answer("85"))
    talking.talk.ask("Hi")
    run_command(talking.talk, "/context")
    rows = [line.split() for line in talking.said.splitlines()]
    assert [row[0] for row in rows] == [
        "instructions",
        "your",
        "answers",
        "used",
        "free",
        "context",
    ]
    assert sum(int(row[-4].replace(",", "")) for row in rows[:3]) == talking.talk.used
    run_command(talking.talk, "/stats")
    assert "first token" in talking.said
    assert "load" not in talking.said
    run_command(talking.talk, "/bye")
    assert talking.talk.ended


def test_names_complete_from_what_is_saved(begin: Begin) -> None:
    talking = begin(answer("1"))
    talking.talk.ask("first")
    assert list(COMMANDS["load"].words(talking.talk)) == talking.talk.archive.names()
    assert os.listdir(talking.talk.archive.folder)
