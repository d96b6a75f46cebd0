"""The benchmark of memory: what it asks for, and one line where something is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.memory.__main__ import main


def test_a_model_and_a_budget_are_needed(tmp_path: Path) -> None:
    for arguments in ([], ["--model", str(tmp_path)], ["--budget", "4"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert "Missing option" in result.stderr


def test_without_matplotlib_it_says_so_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["--model", str(tmp_path), "--budget", "4", "--plot", str(tmp_path / "x.png")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1].startswith("Error: --plot needs matplotlib")
