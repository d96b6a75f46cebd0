"""The page's files as they are served: complete, by themselves, and within the content policy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.root import ROOT

PAGE = ROOT / "gptoss_mlx" / "server" / "page"
OWN = sorted(path for path in PAGE.iterdir() if path.is_file())
MODULES = [path for path in OWN if path.suffix == ".js"]
INDEX = (PAGE / "index.html").read_text(encoding="utf-8")


def imported(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(r"(?:from|import\() ?'([^']+)'", re.sub(r"/\*.*?\*/", "", text, flags=re.S))


def test_every_file_that_is_named_is_there_and_every_file_is_named() -> None:
    named = {PAGE / path for path in re.findall(r'(?:src|href)="/page/([^"]+)"', INDEX)}
    for module in MODULES:
        named |= {(module.parent / name).resolve() for name in imported(module)}
    assert [path for path in named if not path.is_file()] == []
    assert {path for path in OWN if path.name != "index.html"} <= named


def test_nothing_comes_from_outside() -> None:
    assert re.findall(r'(?:src|href|action)="(?!/page/|#|data:image/)[^"]*"', INDEX) == []
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    assert re.findall(r"@import|url\(", style) == []
    for module in MODULES:
        assert all(name.startswith("./") for name in imported(module)), module.name


def test_nothing_is_inline() -> None:
    """What the content policy would refuse."""
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script>", INDEX) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_no_text_becomes_html_or_code(module: Path) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|srcdoc"
    forbidden += r"|createContextualFragment|setHTML|new Function"
    assert re.findall(forbidden, module.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_a_module_is_short_and_says_what_it_is(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert text.startswith("/**")
    assert len(text.splitlines()) <= 350


def test_a_vendored_library_has_its_licence_beside_it_and_in_the_notice() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for path in (PAGE / "vendor").glob("*.js"):
        assert path.with_suffix(".LICENSE.txt").is_file()
        assert f"gptoss_mlx/server/page/vendor/{path.stem}" in notice
