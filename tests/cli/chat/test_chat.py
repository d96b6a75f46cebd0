"""The chat command: through pipes, on a terminal, interrupted, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gptoss_mlx
from gptoss_mlx.cli.chat.__main__ import main
from gptoss_mlx.errors import NumericalError
from tests.cli.test_terminal import DEADLINE, OnTerminal, command, environment
from tests.root import ROOT
from tests.support.scripted_engine import ScriptedEngine

ANSWER = [["analysis", None, "Add them."], ["final", None, "It is **85**."]]

Say = Callable[..., Result]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTOSS_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "conversations"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    engine = ScriptedEngine(ANSWER)
    monkeypatch.setattr(gptoss_mlx, "load", engine.load)
    return engine


@pytest.fixture
def say(engine: ScriptedEngine) -> Say:
    return lambda *arguments, stdin="": CliRunner().invoke(main, arguments, input=stdin)


def test_each_line_of_a_pipe_is_a_message(say: Say, engine: ScriptedEngine, data: Path) -> None:
    result = say(stdin="first\n\n  \nsecond\r\nthird")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "It is **85**.\n" * 3
    assert engine.loads == [("openai/gpt-oss-20b", {"parallel": 1})]
    texts = [prompt[-1]["content"] for prompt, _ in engine.asked]
    assert texts == ["first", "second", "third"]
    assert [len(prompt) for prompt, _ in engine.asked] == [1, 3, 5]
    assert not data.exists()


def test_options_reach_the_engine(say: Say, engine: ScriptedEngine) -> None:
    options = ["--model", "tiny", "--backend", "torch", "--device", "cpu", "--memory", "2GiB"]
    options += ["--context", "1k", "--dtype", "float32", "--embedding", "file", "--kv-bits", "8"]
    options += ["--cache", "0", "--cache-dir", "/tmp/x", "--cache-disk", "1GiB"]
    options += ["--system", "Be brief.", "--reasoning", "low", "--temperature", "0", "--seed", "0"]
    options += ["-n", "9", "--stop", "x", "--logit-bias", "7=1"]
    assert say(*options, stdin="hi\n").exit_code == 0
    loading = {"backend": "torch", "device": "cpu", "memory": 2 << 30, "context": 1024}
    loading |= {"dtype": "float32", "embedding": "file", "kv_bits": 8, "cache": 0, "parallel": 1}
    loading |= {"cache_dir": "/tmp/x", "cache_disk": 1 << 30}
    assert engine.loads == [("tiny", loading)]
    asked = {"system": "Be brief.", "reasoning": "low", "temperature": 0.0, "seed": 0}
    asked |= {"max_tokens": 9, "stop": ("x",), "logit_bias": {7: 1.0}}
    assert engine.asked[0][1] == asked


def test_a_named_session_lasts_and_is_resumed(say: Say, engine: ScriptedEngine) -> None:
    say("--session", "sum", "--seed", "1", stdin="first\n")
    say("--resume", "--reasoning", "high", stdin="second\n")
    say("--resume", "sum", stdin="third\n")
    prompt, options = engine.asked[-1]
    assert [message["content"] for message in prompt[::2]] == ["first", "second", "third"]
    assert options == {"seed": 1, "reasoning": "high"}
    listed = say("--list-sessions")
    assert (listed.exit_code, listed.stdout.split()[2:5]) == (0, ["sum", "3", "turns"])


def test_commands_work_through_a_pipe(say: Say, engine: ScriptedEngine, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    lines = ["/set temperature 0", "hi", "/new", "/system Brief.", "there", f"/export {path}"]
    result = say(stdin="\n".join([*lines, "/quit", "never"]))
    assert (result.exit_code, result.stdout) == (0, "It is **85**.\n" * 2)
    assert engine.asked[1] == ([engine.asked[1][0][0]], {"temperature": 0.0, "system": "Brief."})
    assert len(json.loads(path.read_text())["messages"]) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--temperature", "-1"), "temperature"),
        (("--max-tokens", "0"), "--max-tokens"),
        (("--reasoning", "huge"), "--reasoning"),
        (("--stop", ""), "--stop is empty"),
        (("--resume", "a", "--session", "b"), "not both"),
        (("--nonsense",), "--nonsense"),
        (("hi",), "hi"),
    ],
)
def test_usage_errors_exit_2_before_loading(
    say: Say, engine: ScriptedEngine, arguments: tuple[str, ...], said: str
) -> None:
    result = say(*arguments)
    assert (result.exit_code, result.stdout, engine.loads) == (2, "", [])
    assert said in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--resume",), "no conversation is saved in "),
        (("--resume", "gone"), "no conversation is saved as gone"),
        (("--session", "../up"), "is no name"),
        (("--session", "broken"), "broken.json: is not valid JSON"),
    ],
)
def test_what_cannot_be_resumed_is_one_line_before_loading(
    say: Say, engine: ScriptedEngine, data: Path, arguments: tuple[str, ...], said: str
) -> None:
    if "broken" in arguments:
        data.mkdir(parents=True)
        (data / "broken.json").write_text("{")
    result = say(*arguments, stdin="hi\n")
    assert (result.exit_code, result.stdout, engine.loads) == (1, "", [])
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_error_ends_a_script(say: Say, engine: ScriptedEngine) -> None:
    result = say(stdin="/hlep\nhi\n")
    assert (result.exit_code, engine.asked) == (1, [])
    assert result.stderr == "error: '/hlep' is no command: did you mean /help?\n"
    engine.script = [NumericalError("not finite")]
    assert say(stdin="hi\n").exit_code == 1
    assert say(stdin=b"\xff\n").stderr == "error: stdin: line 1 is not UTF-8 text\n"


@pytest.mark.parametrize("arguments", [("--help",), ("--temperature", "-1")])
def test_nothing_heavy_is_imported_without_need(arguments: tuple[str, ...]) -> None:
    line = [sys.executable, "-X", "importtime", *command(ANSWER, *arguments)[1:]]
    result = subprocess.run(
        line, cwd=ROOT, env=environment(COMMAND="chat"), capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "gptoss_mlx.cli.chat.__main__" in imported
    heavy = {"mlx.core", "torch", "numpy", "rich", "openai_harmony", "prompt_toolkit"}
    assert not imported & heavy


class Chat(OnTerminal):
    """The command on a terminal, whose settings are to be in the end what they were."""

    def __init__(self, script: list[Any], *arguments: str, stdout: Any = None) -> None:
        super().__init__(script, *arguments, stdout=stdout, COMMAND="chat")
        self.earlier = ""

    def prompt(self) -> str:
        """What was shown until the next prompt takes keys."""
        shown = self.read_until("\x1b[?2004h")
        before, _, self.seen = shown.partition("\x1b[?2004h")
        self.earlier += before + "\x1b[?2004h"
        return before

    def receive(self, text: str) -> None:
        super().receive(text)
        if "\x1b[6n" in text:  # where is the cursor?
            self.press("\x1b[1;1R")

    def finish(self) -> tuple[int, str]:
        kept = os.dup(self.master)
        code, shown = super().finish()
        shown = self.earlier + shown
        left = termios.tcgetattr(kept)
        os.close(kept)
        assert left == self.found
        assert shown.count("\x1b[?2004h") <= shown.count("\x1b[?2004l")
        assert shown.rfind("\x1b[?25l") <= shown.rfind("\x1b[?25h")
        return code, shown


def test_a_conversation_on_a_terminal(data: Path) -> None:
    terminal = Chat(ANSWER)
    assert "/help lists commands" in terminal.prompt()
    terminal.press("What is 27 + 58?\r")
    assert "\x1b[1m85\x1b[0m" in terminal.prompt()
    terminal.read_until("tokens/s")
    terminal.press("\x04")
    code, shown = terminal.finish()
    assert code == 0
    assert "thought for " in shown
    assert "goes on" in shown
    (path,) = data.glob("*.json")
    assert len(json.loads(path.read_text())["messages"]) == 2


def test_ctrl_c_stops_the_answer_and_not_the_program(data: Path) -> None:
    terminal = Chat([["final", None, "It is"], "wait"], "--quiet")
    terminal.prompt()
    terminal.press("Count\r")
    terminal.read_until("It is")
    terminal.press("typed ahead\r\x03")
    # The answer was stopped: what was typed meanwhile is the next message.
    terminal.prompt()
    terminal.read_until("It is")
    terminal.press("\x03")
    terminal.prompt()
    terminal.press("\x04")
    code, shown = terminal.finish()
    assert (code, "Traceback" in shown) == (0, False)
    (path,) = data.glob("*.json")
    said = [message["content"] for message in json.loads(path.read_text())["messages"]]
    assert said == ["Count", "It is", "typed ahead", "It is"]


def test_a_second_ctrl_c_stops_an_answer_that_does_not_end() -> None:
    terminal = Chat([["final", None, "It is"], "deaf"], "--quiet")
    terminal.prompt()
    terminal.press("Count\r")
    terminal.read_until("It is")
    terminal.press("\x03")
    terminal.read_until("de")
    terminal.press("\x03")
    terminal.prompt()
    terminal.press("\x04")
    assert terminal.finish()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("answering", [False, True])
def test_a_signal_leaves_the_terminal_as_it_was(number: signal.Signals, answering: bool) -> None:
    terminal = Chat([["final", None, "It is"], "wait"], "--quiet")
    terminal.prompt()
    if answering:
        terminal.press("Count\r")
        terminal.read_until("It is")
    terminal.process.send_signal(number)
    assert terminal.finish()[0] == -number


def test_ctrl_c_while_loading_leaves_the_terminal_as_it_was() -> None:
    terminal = Chat([["load", 1, 2], "lingering"])
    terminal.read_until("working")
    terminal.press("\x03")
    terminal.read_until("unwinding")
    terminal.press("\x03")
    assert terminal.finish()[0] == 130


def test_an_error_ends_the_turn_and_not_the_conversation() -> None:
    terminal = Chat(ANSWER, "--quiet", "--no-save")
    terminal.prompt()
    terminal.press("/hlep\r")
    assert "did you mean /help?" in terminal.prompt()
    terminal.press("hi\r")
    assert "85" in terminal.prompt()
    terminal.press("/quit\r")
    assert terminal.finish()[0] == 0
    assert not Path(os.environ["GPTOSS_DATA"]).exists()


def test_a_resumed_conversation_shows_its_last_turn(say: Say) -> None:
    say("--session", "sum", stdin="first\nWhat is 27 + 58?\n")
    terminal = Chat(ANSWER, "--resume")
    shown = terminal.prompt()
    assert "> What is 27 + 58?" in shown
    assert "\x1b[1m85\x1b[0m" in shown
    assert "> first" not in shown
    terminal.press("\x04")
    assert terminal.finish()[0] == 0


def test_a_model_steers_no_terminal() -> None:
    terminal = Chat([["final", None, "a\x1b]0;title\x07b"]], "--quiet")
    terminal.prompt()
    terminal.press("hi\r")
    assert "a\ufffd]0;title\ufffdb" in terminal.prompt()
    terminal.press("\x04")
    assert "\x1b]" not in terminal.finish()[1]


def test_answers_go_to_a_file_and_prompts_to_the_terminal(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+") as out:
        terminal = Chat(ANSWER, "--quiet", stdout=out)
        terminal.prompt()
        terminal.press("hi\r")
        terminal.prompt()
        terminal.press("\x04")
        assert terminal.finish()[0] == 0
        out.seek(0)
        assert out.read() == "It is **85**.\n"


def test_ctrl_c_in_a_script_ends_it() -> None:
    process = subprocess.Popen(
        command([["final", None, "It is"], "wait"], "--session", "sum"),
        cwd=ROOT,
        env=environment(SAY_READY="1", COMMAND="chat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("hi\nnever\n")
    process.stdin.flush()
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (130, "It is\n", "note: stopped\n")


def test_the_tiny_model_talks() -> None:
    lines = "What is 3 + 4?\nAdd 2 to that.\n/stats\n"
    result = CliRunner().invoke(main, ["--model", "tiny", "--temperature", "0"], input=lines)
    assert (result.exit_code, result.stdout.count("\n")) == (0, 2)
    assert "7" in result.stdout.splitlines()[0]
    assert "9" in result.stdout.splitlines()[1]
    assert " 0 reused" not in result.stderr
