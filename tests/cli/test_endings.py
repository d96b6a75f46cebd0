"""How commands end whatever their streams are, and wherever Ctrl-C comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.models.tiny import materialise
from tests.root import ROOT

DEADLINE = 120  # seconds, for a process that hangs

COMMANDS = {
    "help": ("gptoss_mlx", "--help"),
    "usage": ("gptoss_mlx.cli.plan", "--bits", "7"),
    "plan": ("gptoss_mlx", "plan", "--model", "tiny", "--machine", "16GB Mac"),
    "plan json": ("gptoss_mlx", "plan", "--model", "tiny", "--machine", "16GB Mac", "--json"),
    "doctor": ("gptoss_mlx.cli.doctor", "--model", "tiny"),
    "generate": ("gptoss_mlx.generate", "--model", "tiny", "What is 27 + 58?"),
    "generate json": ("gptoss_mlx", "generate", "--model", "tiny", "--json", "What is 27 + 58?"),
    "dry run": ("convert", "TINY", "DEST", "--dry-run"),
}
SAYS_NOTHING = {"usage"}  # on stdout


def shell(redirection: str, name: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """The command as a shell starts it; the exit code is the command's own, of a pipe too."""
    words = {"TINY": str(materialise()), "DEST": str(tmp_path / "made")}
    arguments = [words.get(word, word) for word in COMMANDS[name]]
    line = f'{{ "$@" {redirection}; }}'.replace("; |", " |")
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}", "bash", sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_left_is_no_error(name: str, tmp_path: Path) -> None:
    result = shell("| true", name, tmp_path)
    assert result.returncode == (2 if name in SAYS_NOTHING else 0)
    assert name in SAYS_NOTHING or result.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line(name: str, tmp_path: Path) -> None:
    result = shell(">/dev/full", name, tmp_path)
    if name in SAYS_NOTHING:
        assert result.returncode == 2
    else:
        line = "error: No space left on device\n"
        assert (result.returncode, result.stderr) == (1, line)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_closed_streams_are_no_error(name: str, tmp_path: Path) -> None:
    for redirection in ("<&- >&-", "2>&-"):
        result = shell(redirection, name, tmp_path)
        assert result.returncode == (2 if name in SAYS_NOTHING else 0)
        assert name in SAYS_NOTHING or result.stderr == ""
        assert bool(result.stdout) == (redirection == "2>&-" and name not in SAYS_NOTHING)


def test_the_converter_converts_whatever_becomes_of_stderr(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    for number, redirection in enumerate(("2>&-", "2>/dev/full", ">&- 2>&-")):
        made = tmp_path / str(number)
        arguments = ("convert", str(small_checkpoint), str(made), "--bits", "8")
        result = subprocess.run(
            ["bash", "-c", f'"$@" {redirection}', "bash", sys.executable, "-m", *arguments],
            cwd=ROOT,
            timeout=DEADLINE,
        )
        assert result.returncode == 0
        assert (made / "config.json").exists()
    names = {path.name for path in (tmp_path / "0").iterdir()}
    for number in (1, 2):
        for name in names - {"gptoss.json"}:
            assert (tmp_path / str(number) / name).read_bytes() == (
                tmp_path / "0" / name
            ).read_bytes()


INTERRUPTING = """
import os, signal, sys

stages, own, began, report = 0, os.getpid(), False, int(os.environ["REPORT"])

def stage(event, arguments):
    global stages, began
    if event != EVENT or os.getpid() != own:
        return
    began = began or str(arguments[0]).startswith("gptoss_mlx.errors")
    stages += began
    if not began or stages % EVERY:
        return
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGINT)
        return
    os.write(report, f"{stages} {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n".encode())

sys.addaudithook(stage)
"""


def interrupted(tmp_path: Path, every: int, *arguments: str) -> tuple[list[list[int]], Any]:
    """Run a command, and at every so-manieth import a copy of its process, with Ctrl-C there.

    Returns the stages, each with its exit code, and the command itself.
    """
    source = INTERRUPTING.replace("EVENT", repr("import")).replace("EVERY", str(every))
    (tmp_path / "sitecustomize.py").write_text(source)
    read, write = os.pipe()
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "REPORT": str(write),
    }
    process = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        pass_fds=[write],
        timeout=DEADLINE,
    )
    os.close(write)
    with open(read) as file:
        return [[int(number) for number in line.split()] for line in file], process


@pytest.mark.slow
@pytest.mark.parametrize("name", ["help", "plan json", "usage"])
def test_ctrl_c_at_any_import_is_quiet_and_130(name: str, tmp_path: Path) -> None:
    stages, process = interrupted(tmp_path, 4, *COMMANDS[name])
    assert process.returncode == (2 if name == "usage" else 0)
    assert len(stages) > 10
    assert {code for _, code in stages} == {130}
    assert "Traceback" not in process.stderr
    assert "Aborted" not in process.stderr
    if name == "plan json":
        assert json.loads(process.stdout)["plan"]
