"""A confined process gets what it was promised and not a byte more."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from benchmarks.memory import confine
from benchmarks.memory.confine import anonymous, run

MIB = 1 << 20


def _filling(mib: int) -> list[str]:
    return [sys.executable, "-c", f"import os; x = bytearray({mib} << 20); print(len(x))"]


@pytest.fixture
def limited() -> None:
    try:
        with confine._group(256 * MIB):
            pass
    except click.ClickException as error:
        pytest.skip(str(error))


def test_without_a_limit_output_and_peak_are_told() -> None:
    outcome = run(_filling(200))
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, f"{200 * MIB}\n", "")
    assert outcome.seconds > 0
    if sys.platform == "linux":
        assert 150 * MIB < outcome.peak < 260 * MIB


@pytest.mark.usefixtures("limited")
def test_what_fits_runs_and_what_does_not_is_killed() -> None:
    assert run(_filling(100), 300 * MIB).returncode == 0
    killed = run(_filling(600), 300 * MIB)
    assert killed.returncode == -9
    assert killed.peak <= 300 * MIB


@pytest.mark.usefixtures("limited")
def test_the_group_is_gone_afterwards() -> None:
    before = set(confine.ROOT.rglob("gptoss-*"))
    run(_filling(1), 300 * MIB)
    assert set(confine.ROOT.rglob("gptoss-*")) == before


def test_where_no_limit_can_be_set_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confine, "ROOT", tmp_path / "nowhere")
    with pytest.raises(click.ClickException, match="no memory limit can be set: No such file"):
        run(_filling(1), 300 * MIB)


def test_a_process_that_is_gone_uses_nothing() -> None:
    assert anonymous(2**22 + 1) == 0
