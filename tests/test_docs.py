"""The README and the pages of docs/: their links lead somewhere, and their Python runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.root import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_and_paths_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ((?:benchmarks|tests|gptoss_mlx|convert)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module
    for path in re.findall(r"`((?:tests|metal|benchmarks|gptoss_mlx|convert)/[\w./-]+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path


def blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


SAYS = {"README.md": "27 + 58 = 85", "docs/python.md": "Maria", "docs/structured.md": "It is 85."}


@pytest.mark.parametrize("name", SAYS)
def test_its_python_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in blocks(name):
        exec(compile(block.replace("engine.close()", ""), name, "exec"), names)
    said = capsys.readouterr().out
    assert SAYS[name] in said
    names["engine"].close()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
