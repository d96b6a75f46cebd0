"""The generate command in a process of its own: on a terminal, through pipes, interrupted.

A scripted engine stands in for the model; terminals are real pseudo-terminals.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.root import ROOT

ANSWER = [["analysis", None, "Add them."], ["final", None, "It is 85."]]
DEADLINE = 30  # seconds, for a process that hangs


def command(script: Sequence[Any], *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.support.scripted_engine", json.dumps(script), *arguments]


def environment(**changes: str) -> dict[str, str]:
    """A terminal with colours and a buffered interpreter, whatever runs the tests."""
    foreign = ("NO_COLOR", "FORCE_COLOR", "PYTHONUNBUFFERED")
    ours = {k: v for k, v in os.environ.items() if k not in foreign}
    return ours | {"TERM": "xterm", "COLUMNS": "80"} | changes


def piped(
    script: Sequence[Any], *arguments: str, **options: Any
) -> subprocess.CompletedProcess[Any]:
    return subprocess.run(
        command(script, *arguments),
        cwd=ROOT,
        env=environment(),
        timeout=DEADLINE,
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
    )


class OnTerminal:
    """The command on a terminal that is its stdin and stderr, and its stdout unless given."""

    def __init__(self, script: Sequence[Any], *arguments: str, stdout: Any = None, **env: str):
        self.master, slave = pty.openpty()
        settings = termios.tcgetattr(slave)
        settings[1] &= ~termios.OPOST  # newlines as they are written
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        self.found = termios.tcgetattr(slave)  # before the command can change them
        self.process = subprocess.Popen(
            command(script, *arguments),
            cwd=ROOT,
            env=environment(OWN_TERMINAL="1", **env),
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read_until(self, wanted: str | None) -> str:
        """Everything shown so far, once `wanted` is among it (None: once all have left)."""
        deadline = time.monotonic() + DEADLINE
        while wanted is None or wanted not in self.seen:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.master], [], [], left)[0] or left == 0:
                self.process.kill()
                raise AssertionError(f"{wanted!r} does not come after {self.seen[-500:]!r}")
            try:
                data = os.read(self.master, 4096)
            except OSError:  # how Linux says that nobody has the terminal any more
                data = b""
            if not data:
                assert wanted is None, f"{wanted!r} is not in {self.seen[-500:]!r}"
                break
            self.receive(data.decode())
        return self.seen

    def receive(self, text: str) -> None:
        self.seen += text

    def finish(self) -> tuple[int, str]:
        """The exit code and everything shown."""
        shown = self.read_until(None)
        os.close(self.master)
        return self.process.wait(DEADLINE), shown


def test_reasoning_is_dim_on_a_terminal_and_every_style_ends_at_once() -> None:
    dim = "".join(f"\x1b[2m{part}\x1b[22m" for part in ("Add", " th", "em."))
    assert OnTerminal(ANSWER, "hi").finish() == (0, f"{dim}\n\nIt is 85.\n")


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_styles_where_they_are_not_wanted(env: dict[str, str]) -> None:
    assert OnTerminal(ANSWER, "hi", **env).finish() == (0, "Add them.\n\nIt is 85.\n")


def test_quiet_shows_the_answer_alone_on_a_terminal() -> None:
    script = [["load", 1, 2], ["prefill", 1, 2], *ANSWER, ["finish", "length"]]
    assert OnTerminal(script, "hi", "--quiet").finish() == (0, "It is 85.\n")


def test_reasoning_goes_to_the_terminal_and_the_answer_to_the_pipe(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+") as out:
        code, shown = OnTerminal(ANSWER, "hi", stdout=out, NO_COLOR="1").finish()
        out.seek(0)
        assert (code, shown, out.read()) == (0, "Add them.\n\n", "It is 85.\n")


def test_a_models_control_characters_reach_a_pipe_but_no_terminal() -> None:
    text = "a\x1b]0;title\x07\r\x9bb\tc\n"
    script = [["final", None, text]]
    safe = "a\ufffd]0;title\ufffd\ufffd\ufffdb\tc\n"
    assert OnTerminal(script, "hi").finish() == (0, safe)
    assert piped(script, "hi", text=False).stdout == text.encode()


def test_through_pipes_there_is_no_progress_and_no_style() -> None:
    script = [["load", 1, 2], ["prefill", 1, 2], *ANSWER]
    result = piped(script, "hi")
    assert (result.returncode, result.stdout, result.stderr) == (0, "It is 85.\n", "")


def test_bars_appear_on_a_terminal_and_go_without_a_trace() -> None:
    script = [["load", 3, 4], "load key", ["prefill", 5, 6], "key", *ANSWER]
    terminal = OnTerminal(script, "hi", BAR_AFTER="0")
    terminal.read_until("3/4 bytes")
    terminal.press("\n")
    terminal.read_until("5/6")
    terminal.press("\n")
    code, shown = terminal.finish()
    assert code == 0
    assert "Loading gpt-oss-20b" in shown
    assert shown.endswith("It is 85.\n")
    assert "\x1b[?25" not in shown  # the cursor is neither hidden nor shown again
    erased = shown.rindex("\x1b[2K")
    assert shown.rindex("Reading the prompt") < erased < shown.index("\x1b[2m")


def test_quick_work_shows_no_bar() -> None:
    code, shown = OnTerminal([["load", 3, 4], ["prefill", 5, 6], *ANSWER], "hi").finish()
    assert (code, "Loading" in shown, "\x1b[?25" in shown) == (0, False, False)


def test_quiet_work_shows_no_bar() -> None:
    script = [["load", 3, 4], "load key", ["final", None, "It is 85."]]
    terminal = OnTerminal(script, "hi", "--quiet", BAR_AFTER="0")
    terminal.press("\n")
    code, shown = terminal.finish()
    assert (code, shown.strip()) == (0, "It is 85.")


def test_a_bar_with_json_leaves_stdout_to_the_object(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+") as out:
        script = [["prefill", 5, 6], "key", *ANSWER]
        terminal = OnTerminal(script, "hi", "--json", stdout=out, BAR_AFTER="0")
        terminal.read_until("5/6")
        terminal.press("\n")
        code, shown = terminal.finish()
        out.seek(0)
        assert (code, json.loads(out.read())["text"]) == (0, "It is 85.")
        assert "Add" not in shown


def test_ctrl_c_keeps_what_was_said_and_exits_130() -> None:
    terminal = OnTerminal([["final", None, "It is"], "wait"], "hi")
    terminal.read_until("It is")
    terminal.press("\x03")
    code, shown = terminal.finish()
    assert (code, shown.replace("^C", "")) == (130, "It is\n\n")


def test_ctrl_c_with_json_still_gives_the_object() -> None:
    process = subprocess.Popen(
        command([["final", None, "It is"], ["prefill", 1, 2], "wait"], "hi", "--json"),
        cwd=ROOT,
        env=environment(SAY_READY="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    value = json.loads(out)
    assert (process.returncode, err) == (130, "")
    assert (value["text"], value["finish_reason"]) == ("It is", "cancelled")


def test_ctrl_c_while_loading_ends_with_a_clean_line() -> None:
    terminal = OnTerminal([["load", 1, 2], "stuck"], "hi", BAR_AFTER="0")
    terminal.read_until("Loading")
    terminal.press("\x03")
    code, shown = terminal.finish()
    assert code == 130
    assert "\x1b[?25l" not in shown
    assert shown.endswith("\n")
    assert "Traceback" not in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_while_a_bar_is_shown_leaves_nothing_hidden(number: signal.Signals) -> None:
    terminal = OnTerminal([["load", 1, 2], "stuck"], "hi", BAR_AFTER="0")
    terminal.read_until("1/2 bytes")
    terminal.process.send_signal(number)
    code, shown = terminal.finish()
    assert code == -number
    assert "\x1b[?25l" not in shown
    assert "Traceback" not in shown


def test_ctrl_c_again_while_the_first_is_obeyed_ends_at_once() -> None:
    terminal = OnTerminal(["lingering"], "hi")
    terminal.read_until("working")
    terminal.press("\x03")
    terminal.read_until("unwinding")
    terminal.press("\x03" * 10)
    code, shown = terminal.finish()
    assert code == 130
    assert "Traceback" not in shown


def test_a_name_steers_no_terminal_through_a_bar(tmp_path: Path) -> None:
    name = "[red]a\x1b]0;title\x07[link=x]b\u202e"
    terminal = OnTerminal(["stuck"], "hi", "--model", f"x/{name}", BAR_AFTER="0", COLUMNS="200")
    terminal.read_until("Loading [red]a\ufffd]0;title\ufffd[link=x]b\ufffd")
    terminal.press("\x03")
    assert terminal.finish()[0] == 130
    assert "\x1b]" not in terminal.seen


def test_what_is_written_elsewhere_is_counted_on_the_terminal(tmp_path: Path) -> None:
    for options in ([], ["--json"]):
        with (tmp_path / "out").open("w") as out:
            script = [["final", None, "It is"], "key", ["final", None, " 85."]]
            terminal = OnTerminal(script, "hi", *options, stdout=out, BAR_AFTER="0")
            terminal.read_until("Writing")
            terminal.press("\n")
            assert terminal.finish()[0] == 0
            assert "It is" in (tmp_path / "out").read_text()
    terminal = OnTerminal([["final", None, "It is"], "key"], "hi", BAR_AFTER="0")
    terminal.read_until("It is")
    terminal.press("\n")
    assert "Writing" not in terminal.finish()[1]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_leaves_ends_the_stream_itself(options: list[str]) -> None:
    process = subprocess.Popen(
        command([["analysis", None, "Hm"], "wait"], "hi", *options),
        cwd=ROOT,
        env=environment(SAY_READY="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.stdout.close()
    assert (process.stderr.read(), process.wait(DEADLINE)) == ("", 0)
    process.stderr.close()


def test_a_second_ctrl_c_ends_a_stream_that_does_not() -> None:
    terminal = OnTerminal([[None, None, "It is"], "deaf"], "hi")
    terminal.read_until("It is")
    terminal.press("\x03")
    terminal.read_until("deaf")
    terminal.press("\x03")
    code, shown = terminal.finish()
    assert (code, shown.replace("^C", "")) == (130, "It is deaf\n\n")


def test_without_a_prompt_on_a_terminal_it_says_what_to_give() -> None:
    code, shown = OnTerminal(ANSWER).finish()
    assert code == 2
    assert "give a PROMPT" in shown


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    process = subprocess.Popen(
        command([["final", None, "word " * 20_000]], "hi"),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(4) == b"word"
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait(DEADLINE)) == (b"", 0)
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        result = piped(ANSWER, "hi", stdout=full)
    assert (result.returncode, result.stderr) == (1, "error: No space left on device\n")


def test_a_closed_stdout_is_no_error() -> None:
    line = ["sh", "-c", '"$@" >&-', "sh", *command(ANSWER, "hi")]
    result = subprocess.run(
        line, cwd=ROOT, env=environment(), capture_output=True, timeout=DEADLINE, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [("hi",), ("hi", "--temperature", "-1"), ("--help",)])
def test_nothing_heavy_is_imported_without_need(arguments: tuple[str, ...]) -> None:
    script = command(ANSWER, *arguments)
    result = subprocess.run(
        [script[0], "-X", "importtime", *script[1:]],
        cwd=ROOT,
        capture_output=True,
        timeout=DEADLINE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "gptoss_mlx.generate" in imported
    heavy = {"mlx.core", "torch", "numpy", "rich", "openai_harmony", "huggingface_hub", "tqdm"}
    assert not imported & heavy
