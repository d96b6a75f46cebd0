"""What the generate command reads through stdin, beside a PROMPT or in its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.root import ROOT

DEADLINE = 60  # seconds, for a process that hangs
TEXT = "grün\nund blau\n"

ASKING = """
import json, sys
import gptoss_mlx
from gptoss_mlx import generate
from gptoss_mlx.cli import question
from tests.support.scripted_engine import ScriptedEngine
question.PATIENCE = float(sys.argv.pop(1))
engine = ScriptedEngine([])
gptoss_mlx.load = engine.load
try:
    generate.main()
finally:
    print(json.dumps([prompt for prompt, _ in engine.asked]))
"""


def ask(*arguments: str, patience: float = 60.0, **options: Any) -> tuple[Any, str, int]:
    """The prompt that reached the engine, or None; stderr; the exit code."""
    command = [sys.executable, "-c", ASKING, str(patience), *arguments]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True,
        timeout=DEADLINE, **options,
    )  # fmt: skip
    asked = json.loads(run.stdout.splitlines()[-1])
    return (asked[0] if asked else None), run.stderr, run.returncode


def test_a_prompt_is_followed_by_what_is_piped_in(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    assert ask("Translate:", input=TEXT) == ("Translate:\n\ngrün\nund blau", "", 0)
    with (tmp_path / "text").open() as file:
        assert ask("Translate:", stdin=file)[0] == "Translate:\n\ngrün\nund blau"
    assert ask(input=TEXT)[0] == ask("-", input=TEXT)[0] == "grün\nund blau"


def test_a_prompt_stands_alone_where_nothing_comes(tmp_path: Path) -> None:
    assert ask("Hello", input="") == ("Hello", "", 0)
    assert ask("Hello", stdin=subprocess.DEVNULL) == ("Hello", "", 0)
    assert ask("--raw", "Hello", input=TEXT)[0] == "Hello"
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open() as file:
        assert ask("Hello", stdin=file)[0] == "Hello"


def test_a_pipe_that_stays_silent_is_not_waited_for_for_ever() -> None:
    """As a program has it that was started with a pipe of somebody's."""
    read, write = os.pipe()
    prompt, note, code = ask("Hello", patience=0.2, stdin=read)
    os.close(read)
    os.close(write)
    assert (prompt, code) == ("Hello", 0)
    assert note.startswith("note: stdin was silent for 0.2 s and is not read")


def test_a_pipe_that_has_begun_is_read_to_its_end() -> None:
    line = f'(printf "one"; printf " two") | "{sys.executable}" -c "$0" 60 "Count:"'
    run = subprocess.run(
        ["bash", "-c", line, ASKING], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE
    )
    assert json.loads(run.stdout.splitlines()[-1]) == ["Count:\n\none two"]


def test_messages_come_through_stdin_and_through_a_shells_pipe(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    text = json.dumps(messages)
    assert ask("--messages", "-", input=text)[0] == messages
    more = [*messages, {"role": "user", "content": "And now?"}]
    assert ask("--messages", "-", "And now?", input=text)[0] == more
    line = f'"{sys.executable}" -c "$0" 60 --messages <(echo "$1") </dev/null'
    run = subprocess.run(
        ["bash", "-c", line, ASKING, text], cwd=ROOT, capture_output=True, text=True
    )
    assert json.loads(run.stdout.splitlines()[-1]) == [messages]
    prompt, line, code = ask("--messages", "-", "-", input=text)
    assert (prompt, code) == (None, 2)
    assert "cannot be both" in line
    prompt, line, code = ask("--messages", "-", input="[")
    assert (prompt, code) == (None, 1)
    assert line.startswith("error: stdin: is not valid JSON")


@pytest.mark.parametrize("arguments", [(), ("Summarise",), ("--messages", "-")])
def test_stdin_without_end_is_refused_at_the_limit(arguments: tuple[str, ...]) -> None:
    with open("/dev/zero", "rb") as zero, subprocess.Popen(
        ["head", "-c", str(200 << 20)], stdin=zero, stdout=subprocess.PIPE
    ) as head:  # fmt: skip
        prompt, line, code = ask(*arguments, stdin=head.stdout)
        assert head.stdout is not None
        head.stdout.close()
    assert (prompt, code) == (None, 1)
    assert line.startswith("error: stdin: more than ")
    assert line.count("\n") == 1
