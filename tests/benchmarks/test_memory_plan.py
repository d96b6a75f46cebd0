"""The benchmark of the plan: it plans, drives a process to its limits, and ends with one line."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks.memory import plan as bench_plan
from benchmarks.memory.plan import CASES, STREAMING, Case, main
from tests.support.checkpoints import Shape

FULL = Shape(2, 32, 32, 8, 4, 2, 1, 16, 201088)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_compares_a_plan_with_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(FULL, 64, budget="300MiB", recipe="8")
    monkeypatch.setattr(bench_plan, "CASES", {"small": case, "other": case})
    monkeypatch.setattr(bench_plan, "SNAPSHOT_BUDGET", 64 << 10)
    result = CliRunner().invoke(main, ["--only", "sm"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    (row,) = report["cases"]
    assert row["plan"] == sum(row["buffers"].values()) <= row["budget"]
    assert 100 << 20 < row["measured"] < 300 << 20
    assert report["worst"] == pytest.approx(abs(row["measured_over_plan"] - 1))
    assert "over plan" in result.stderr


def test_there_are_ten_cases_and_some_that_stream() -> None:
    assert len(CASES) == 10
    assert all(case.budget for case in STREAMING.values())


@pytest.mark.parametrize(("length", "chunk"), [(1016, 512), (752, 512), (3000, 128)])
def test_turns_take_snapshots_and_then_fill_the_context_with_whole_chunks(
    length: int, chunk: int
) -> None:
    rings = bench_plan.SNAPSHOT_BUDGET // 9
    state = SimpleNamespace(snapshot=lambda: SimpleNamespace(nbytes=rings))
    model = SimpleNamespace(new_state=lambda: state, prefill=lambda ids, state: None)
    turns = bench_plan._turns(model, length, chunk)
    assert turns == sorted(set(turns))
    assert len(turns) == 11
    assert turns[-1] == length
    assert (length - turns[-2]) % chunk == 0
