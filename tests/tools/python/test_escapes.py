"""Each attempt of the table is held, and would have succeeded without the sandbox."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from gptoss_mlx.tools.python.tool import PythonTool
from tests.tools.python.attempts import ATTEMPTS, PRELUDE, Attempt
from tests.tools.python.conftest import SMALL, Make

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the attempts are at Linux's walls"),
    pytest.mark.timeout(60),
]

INTEL = "calls of 32-bit programs"


def prepared(tool: PythonTool, host: dict[str, Any], walled: bool) -> PythonTool:
    """A tool whose interpreter has what the attempts need."""
    known = {**host, "walled": walled, "folder": str(tool.folder)}
    output = tool.call("python", f"HOST = {known!r}\n{PRELUDE}")
    assert not output.failed, output.text
    return tool


def ids(attempt: Attempt) -> str:
    return f"{attempt.group}: {attempt.name}"


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=ids)
def test_it_is_held(attempt: Attempt, walled: PythonTool, host: dict[str, Any], make: Make) -> None:
    if attempt.name == INTEL and os.uname().machine != "x86_64":
        pytest.skip("x86_64 only")
    limits = replace(SMALL, wall=attempt.wall, cpu=attempt.cpu)
    tool = prepared(make(limits) if attempt.fresh else walled, host, walled=True)
    said = tool.call("python", attempt.cell)
    assert "REACHED" not in said.text, said.text
    assert re.search(attempt.expected, said.text), said.text
    assert said.files == () or attempt.fresh
    lost = attempt.lost or (attempt.counted and tool.kind == "bubblewrap")
    assert ("the interpreter has ended" in said.text) == lost, said.text
    further = tool.call("python", "print(1 + 1)")
    if lost or not attempt.fresh:  # else it may have broken its own interpreter
        assert further.text.splitlines()[0] == "2"
    assert ("a new interpreter was started" in further.text) == lost


@pytest.mark.parametrize("attempt", [a for a in ATTEMPTS if a.outside], ids=ids)
def test_it_succeeds_without_a_sandbox(
    attempt: Attempt, unwalled: PythonTool, host: dict[str, Any]
) -> None:
    if attempt.privileged and os.geteuid() != 0:
        pytest.skip("only root's code could do it at all")
    if attempt.name == INTEL and os.uname().machine != "x86_64":
        pytest.skip("x86_64 only")
    said = prepared(unwalled, host, walled=False).call("python", attempt.cell)
    assert "REACHED" in said.text, said.text


@pytest.mark.parametrize("attempt", [a for a in ATTEMPTS if not a.outside], ids=ids)
def test_its_harmless_twin_works(
    attempt: Attempt, walled: PythonTool, host: dict[str, Any]
) -> None:
    said = prepared(walled, host, walled=True).call("python", attempt.twin)
    assert "WORKS" in said.text, said.text


def test_every_attempt_has_a_name_of_its_own_and_a_control() -> None:
    assert len(ATTEMPTS) >= 60
    assert max(Counter(map(ids, ATTEMPTS)).values()) == 1
    assert [ids(a) for a in ATTEMPTS if a.outside == bool(a.twin)] == []
