"""The cost table of the kernels: its figures on sizes small enough to know them."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from click.testing import CliRunner

from benchmarks.kernels import costs as kernel_costs
from benchmarks.kernels.costs import Cost, cost, main, recorded, table
from benchmarks.kernels.jobs import decode_moe, jobs
from benchmarks.kernels.pieces import Sizes
from tests.support.metal_emulator import Emulator, available

SMALL = Sizes(
    **{"hidden": 128, "inner": 64, "experts": 4, "active": 2, "vocabulary": 96},
    **{"heads": 4, "kv_heads": 2, "head_dim": 32, "prompt": 32},
    **{"part_rows": 96, "part_outputs": 64},
)
needs_clang = pytest.mark.skipif(available() is not None, reason=str(available()))


@needs_clang
def test_what_our_kernels_touch_is_what_is_needed() -> None:
    ours, _ = decode_moe(SMALL, mx.bfloat16)
    emulator = Emulator(trace=True)
    for piece in ours.pieces:
        piece.run(emulator)
    ids = {"slots", "experts", "weights", "limit"}
    counts = [t for one in emulator.launches for n, t in one.traffic.items() if n not in ids]
    assert sum(t.touched_read + t.touched_written for t in counts) == ours.floor


@needs_clang
def test_ours_cost_less_than_mlx() -> None:
    ours, theirs = (cost(job, "bfloat16") for job in decode_moe(SMALL, mx.bfloat16))
    assert ours.floor == theirs.floor < ours.accessed <= ours.requested
    assert ours.accessed < theirs.accessed
    assert ours.launches == 2 < theirs.launches
    assert 0 < ours.operations < theirs.operations
    assert ours.operations == pytest.approx(ours.floating + ours.integer + ours.conversions)
    assert theirs.coalescing < ours.coalescing <= 1
    assert theirs.elsewhere > 0 == ours.elsewhere


@needs_clang
def test_it_prints_a_table_and_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_costs, "Sizes", lambda: SMALL)
    result = CliRunner().invoke(main, ["--only", "decode"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    ours, theirs, openai = (Cost(**row) for row in report["costs"])
    assert (ours.who, theirs.who, openai.who) == ("ours", "MLX", "OpenAI")
    assert ours.dtype == "bfloat16"
    assert "decode MoE" in result.stdout


def test_each_job_is_done_by_both() -> None:
    found = [(job.name, job.who) for job in jobs(SMALL, mx.bfloat16)]
    names = {name for name, _ in found}
    assert len(names) == 6
    assert sorted(found) == sorted((name, who) for name in names for who in ("ours", "MLX"))


def test_the_recorded_figures_are_shown_beside() -> None:
    costs = recorded()
    assert {c.who for c in costs} == {"OpenAI"}
    assert table(costs).row_count == len(costs) == 3
