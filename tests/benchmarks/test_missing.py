"""Benchmarks where the packages they need are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.root import ROOT


def run_without(package: str, module: str, folder: Path) -> tuple[int, str]:
    """The exit code and stderr of a benchmark where a package cannot be imported."""
    error = f"ModuleNotFoundError('No module named {package}', name='{package}')"
    (folder / f"{package}.py").write_text(f"raise {error}\n")
    command = [sys.executable, "-m", f"benchmarks.{module}", "--help"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return run.returncode, run.stderr


@pytest.mark.parametrize(("package", "module"), [("torch", "cuda"), ("triton", "cuda.sass")])
def test_a_missing_package_is_one_line(tmp_path: Path, package: str, module: str) -> None:
    line = f"error: {package} is not installed: pip install -e '.[cuda]'\n"
    assert run_without(package, module, tmp_path) == (1, line)


def test_another_failure_is_shown_as_it_is(tmp_path: Path) -> None:
    assert "Traceback" in run_without("click", "cuda", tmp_path)[1]
