"""The first steps of a command: nothing is imported from the folder it is run in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_mlx.models.tiny import materialise
from tests.root import ROOT

TINY = ("--model", "tiny")
PLANT = "import os\nos.write(2, b'code of the folder runs')\nraise SystemExit(99)\n"


def run(
    *command: str, cwd: Path, isolated: bool = False, **changes: str
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | changes
    if isolated:
        del environment["PYTHONPATH"]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for every module a command imports, at once or late."""
    folder = tmp_path_factory.mktemp("model")
    names = imported("gptoss_mlx.generate", *TINY, "hi", cwd=folder)
    names |= {"__future__", "gguf", "rich", "prompt_toolkit", "torch", "triton", "gptoss_kernels"}
    assert names >= {"click", "numpy", "mlx", "json", "typing", "openai_harmony", "gptoss_mlx"}
    # What the interpreter needs to find any module by its name comes before our first line.
    (folder / "nothing.py").touch()
    for name in names - {"gptoss_mlx"} - imported("nothing", cwd=folder):
        (folder / f"{name}.py").write_text(PLANT)
    return folder


def imported(*command: str, cwd: Path) -> set[str]:
    """Top-level names that a module run by `python -m` imports, with what runs it."""
    result = run(sys.executable, "-X", "importtime", "-m", *command, cwd=cwd)
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


COMMANDS = [
    ("gptoss_mlx", "--help"),
    ("gptoss_mlx", "generate", *TINY, "What is 27 + 58?"),
    ("gptoss_mlx", "chat", "--list-sessions"),
    ("gptoss_mlx.generate", *TINY, "What is 27 + 58?"),
    ("gptoss_mlx.cli.plan", *TINY, "--machine", "16GB Mac"),
    ("gptoss_mlx.cli.doctor", *TINY),
    ("convert", "TINY", "converted", "--dry-run"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_imports_nothing_from_its_folder(planted: Path, command: tuple[str, ...]) -> None:
    arguments = [str(materialise()) if word == "TINY" else word for word in command]
    result = run(sys.executable, "-m", *arguments, cwd=planted)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


@pytest.mark.parametrize(
    "option", [["-P"], ["-m", "gptoss_mlx.cli.plan"], ["-mgptoss_mlx.cli.plan"]]
)
def test_however_the_module_is_named(planted: Path, option: list[str]) -> None:
    named = [] if "gptoss_mlx.cli.plan" in option[-1] else ["-m", "gptoss_mlx.cli.plan"]
    result = run(sys.executable, *option, *named, "--machine", "16GB Mac", cwd=planted)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("script", ["gptoss-mlx", "gptoss-convert"])
def test_an_installed_script_imports_nothing_from_its_folder(planted: Path, script: str) -> None:
    path = shutil.which(script, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip("the package is not installed")
    result = run(sys.executable, path, "--help", cwd=planted)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: ")


def test_a_bare_checkout_still_runs(tmp_path: Path) -> None:
    for name in ("gptoss_mlx", "convert"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys, gptoss_mlx; print(gptoss_mlx.__file__)"
    where = run(sys.executable, "-c", code, cwd=tmp_path, isolated=True).stdout.strip()
    assert Path(where).parent == tmp_path / "gptoss_mlx"
    for module in ("gptoss_mlx", "convert"):
        result = run(sys.executable, "-m", module, "--help", cwd=tmp_path, isolated=True)
        assert (result.returncode, result.stdout[:6]) == (0, "Usage:")


def test_a_program_of_somebody_keeps_its_path(tmp_path: Path) -> None:
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__init__.py").write_text("import gptoss_mlx\n")
    (tmp_path / "tool" / "__main__.py").write_text("import beside\n")
    (tmp_path / "beside.py").write_text(
        "import signal\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    (tmp_path / "script.py").write_text("import gptoss_mlx, beside\n")
    for arguments in (["-m", "tool"], ["-mtool"], ["script.py"], ["-c", "import tool, beside"]):
        result = run(sys.executable, *arguments, cwd=tmp_path)
        assert (result.stdout, result.stderr) == ("True\n", "")
