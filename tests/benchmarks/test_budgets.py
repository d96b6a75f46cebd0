"""The sweep over budgets: its worker measures, the same logits come out, and failures are rows."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.memory import budgets
from benchmarks.memory.budgets import Asked, Outcome, sweep, sweep_report
from benchmarks.memory.confine import Outcome as Ended
from gptoss_mlx.models.tiny import materialise

GIB = 2**30


@pytest.fixture
def asked() -> Asked:
    return Asked(materialise(), 1024, 12, 4, "float32")


@pytest.fixture
def unconfined(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Limits that were asked for; the worker runs here, without them."""
    limits: list[int | None] = []

    def run(command: list[str], limit: int | None) -> Ended:
        limits.append(limit)
        if command[3] != "gptoss_mlx":
            return Ended(-9, "", "", 1.0, limit or 0)
        values = json.loads(command[4])
        if values["limit"] == GIB // 4:
            return Ended(
                1, "", "Traceback\ngptoss_mlx.errors.MemoryBudgetError: too little", 1.0, 5
            )
        values["folder"] = Path(values["folder"])
        assert values.pop("limit") == limit
        return Ended(0, json.dumps(budgets._ours(Asked(**values), limit)), "", 1.0, GIB // 3)

    monkeypatch.setattr(budgets, "run", run)
    return limits


def test_every_budget_is_a_row_and_gives_the_same_logits(
    asked: Asked, unconfined: list[int | None]
) -> None:
    rows = list(sweep(asked, [1.0, 0.5, 0.25], ["mlx-lm"]))
    assert unconfined == [None, GIB, GIB // 2, GIB // 4, GIB, GIB // 2, GIB // 4]
    ours, peer = rows[:4], rows[4:]
    assert [row.ended for row in ours[:3]] == ["well"] * 3
    assert len({row.logits for row in ours[:3]}) == 1
    assert all(row.decode_rate > 0 and row.slots == 8 and row.hit_rate == 1 for row in ours[:3])
    assert ours[3].ended.endswith("MemoryBudgetError: too little")
    assert {row.ended for row in peer} == {"killed: out of memory"}


@pytest.mark.slow
@pytest.mark.usefixtures("unconfined")
def test_the_report_is_json_and_the_table_says_how_each_ended(asked: Asked, tmp_path: Path) -> None:
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    drawn = importlib.util.find_spec("matplotlib") is not None
    plot = tmp_path / "x.png" if drawn else None
    report = sweep_report(console, asked, [0.5, 0.25], ["mlx-lm"], plot)
    console.file.close()
    values: dict[str, Any] = json.loads(json.dumps(report))
    assert [run["ended"] for run in values["runs"]][:2] == ["well", "well"]
    assert "folder" not in values["asked"]
    text = console.export_text()
    assert "0.5 GiB" in text
    assert "killed: out of memory" in text
    if plot is not None:
        assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_worker_prints_its_measurements_last(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"folder": str(asked.folder), "context": 1024, "prompt": 5, "decode": 2}
    command = ["budgets", "gptoss_mlx", json.dumps({**values, "dtype": "float32", "limit": GIB})]
    monkeypatch.setattr(sys, "argv", command)
    budgets.main()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Outcome("gptoss_mlx", GIB, "well", 0, **line).read == 0
