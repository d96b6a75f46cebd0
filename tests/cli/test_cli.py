"""The command group: its subcommands by name, imported only when used."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from gptoss_mlx import __version__
from gptoss_mlx.cli.main import main


def test_the_group_lists_its_commands() -> None:
    run = CliRunner().invoke(main, ["--help"])
    assert run.exit_code == 0
    assert "generate  Answer one prompt." in run.output
    assert "chat      Talk with the model." in run.output


def test_an_unknown_command_is_a_usage_error() -> None:
    run = CliRunner().invoke(main, ["explode"])
    assert run.exit_code == 2
    assert "No such command 'explode'" in run.output


def test_a_subcommand_is_found_and_shows_its_own_help() -> None:
    run = CliRunner().invoke(main, ["generate", "--help"])
    assert run.exit_code == 0
    assert "--model" in run.output


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_python_m_is_the_same_command_and_imports_no_subcommand(option: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['gptoss_mlx', {option!r}]\n"
        "try:\n"
        "    runpy.run_module('gptoss_mlx', run_name='__main__')\n"
        "finally:\n"
        "    assert 'gptoss_mlx.generate' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(
        f"gptoss-mlx, version {__version__}" if option == "--version" else "Usage: gptoss-mlx"
    )
