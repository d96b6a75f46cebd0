"""The benchmark of memory: replay and prediction by hand, and the command's tables and errors."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import predict, predict_mode, trace_mode
from benchmarks.bench_memory import main
from benchmarks.policies import LIMIT, POLICIES, PRODUCT
from benchmarks.predict import (
    GIB,
    Assumptions,
    Machine,
    Shares,
    rates,
    sizes,
    slots_in,
    waited,
)
from benchmarks.replay import compare, hit_rate, lookahead, outcomes, over_limit, slots_for
from benchmarks.synthetic import Routing, synthesise
from benchmarks.traces import Trace, load, save

SKEWED = Routing(zipf=1.0, sticky=0.2, experts=16, layers=2, steps=60)
ASSUMED = Assumptions()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    save(synthesise("short", SKEWED), tmp_path / "short.npz")
    return tmp_path / "short.npz"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def by_hand() -> Trace:
    """Two slots: of layer 0 the second and fifth step hit one, of layer 1 only the second two."""
    chosen = np.array([[[0, 1], [0, 1]], [[1, 2], [0, 1]], [[0, 3], [2, 3]], [[1, 2], [0, 1]]])
    predicted = np.full_like(chosen, -1)
    predicted[:, 1] = [[1, 2], [0, 3], [3, 1], [-1, -1]]
    return Trace("by hand", 4, chosen, predicted)


def test_hits_by_hand() -> None:
    assert hit_rate(by_hand(), POLICIES["LRU"], 2) == pytest.approx((1 + 2) / 16)
    assert hit_rate(by_hand(), POLICIES[PRODUCT], 4) == pytest.approx((16 - 8) / 16)


def test_outcomes_by_hand() -> None:
    """Experts 0 and 1 are in the bank in steps 1 and 2, nothing in step 0, 2 and 3 in step 3."""
    assert outcomes(by_hand(), 2) == {
        (2, (True, False)): 1,
        (0, (False,)): 1,
        (2, (True,)): 1,
        (2, ()): 1,
    }
    assert outcomes(by_hand(), 2, depth=1, skip=1) == {(0, ()): 1, (2, (True,)): 1, (2, ()): 1}


def test_lookahead_by_hand() -> None:
    found = lookahead(by_hand(), 2)
    assert found is not None
    assert (found.recall, found.precision) == (3 / 8, 3 / 6)
    assert (found.of_misses, found.of_reads) == (2 / 6, 2 / 4)
    assert lookahead(Trace("x", 4, by_hand().chosen), 2) is None


def test_shares_become_slots() -> None:
    trace = synthesise("x", SKEWED)
    assert [slots_for(trace, share) for share in (0.125, 0.25, 0.9)] == [None, 4, 14]


def test_the_limit_is_the_measure() -> None:
    ratios = over_limit(compare(synthesise("x", SKEWED)))
    assert set(ratios[LIMIT]) == {1.0}
    assert all(ratio >= 1 for of in ratios.values() for ratio in of)
    # With as many slots as a step takes there is nothing to choose.
    assert len(ratios[PRODUCT]) == 4


@pytest.mark.parametrize(("shape", "rest", "token"), [("20b", 1.91, 2.56), ("120b", 2.25, 3.53)])
def test_sizes_are_the_released_ones(shape: str, rest: float, token: float) -> None:
    size = sizes(shape, ASSUMED)
    assert size.expert == 13_219_200
    embedding, biases = 201088 * 2880 * (1 + 4 / 64), size.layers * size.experts * 3 * 2880 * 2
    assert (size.resident + embedding - biases) / 1e9 == pytest.approx(rest, rel=0.01)
    assert size.token / 1e9 == pytest.approx(token, rel=0.01)
    assert size.kv == size.layers // 2 * (8192 + 128) * 2048


def test_slots_fill_the_budget_exactly() -> None:
    size = sizes("20b", ASSUMED)
    slots = slots_in(16, size, ASSUMED)
    assert slots is not None
    taken = size.resident + size.kv + ASSUMED.other_bytes
    each = size.layers * size.expert
    assert taken + slots * each <= 16 * GIB * 2 / 3 < taken + (slots + 1) * each
    assert slots_in(64, size, ASSUMED) == 32
    assert slots_in(64, size, replace(ASSUMED, budget=taken + 4 * each)) == 4
    assert slots_in(64, size, replace(ASSUMED, budget=taken + 4 * each - 1)) is None


def test_waiting_by_hand() -> None:
    """Reads take 4 s; of three misses the first and third read ahead are right."""
    outcome = (3, (True, False, True))
    assert waited(outcome, 0.0, 4.0, stopped=True) == 12
    assert waited(outcome, 0.0, 4.0, stopped=False) == 12
    # 3 s: three quarters of a right read have come; or it is waited for, 1 s.
    assert waited(outcome, 3.0, 4.0, stopped=True) == 9
    assert waited(outcome, 3.0, 4.0, stopped=False) == 1 + 8
    # 5 s: a right read, and 1 s of a wrong one that is stopped, or runs for 3 s more.
    assert waited(outcome, 5.0, 4.0, stopped=True) == 8
    assert waited(outcome, 5.0, 4.0, stopped=False) == 3 + 8
    assert waited(outcome, 100.0, 4.0, stopped=True) == 4
    assert waited(outcome, 100.0, 4.0, stopped=False) == 4


@given(
    st.lists(st.booleans(), max_size=4).map(tuple),
    st.integers(0, 4),
    st.floats(0, 20),
    st.floats(0.1, 10),
)
def test_stopping_wrong_reads_never_waits_longer(
    ahead: tuple[bool, ...], others: int, window: float, read: float
) -> None:
    outcome = (sum(ahead) + others, ahead)
    stopped, finished = (waited(outcome, window, read, stopped=s) for s in (True, False))
    assert others * read - 1e-9 <= stopped <= min(finished, outcome[0] * read) + 1e-9


def test_rates_by_hand() -> None:
    size = sizes("20b", ASSUMED)
    found: Shares = {(1, ()): 0.5, (0, ()): 0.5}
    seconds = size.token / 1e11 + 24 * 0.5 * size.expert / 3e9
    rate = rates(size, 1e11, 3e9, found)
    assert rate.plain == pytest.approx(1 / seconds)
    assert rate.plain == pytest.approx(rate.stopped) == pytest.approx(rate.finished)
    assert rates(size, 1e11, 1e18, found).plain == pytest.approx(1e11 / size.token)
    ahead = rates(size, 1e11, 3e9, {(1, (True,)): 1.0})
    layer = size.layer / 1e11
    waits = 24 * size.expert / 3e9 - 23 * layer
    assert ahead.stopped == pytest.approx(1 / (size.token / 1e11 + waits))


def test_a_prediction_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("M9", 100e9, (4, 16, 24, 32))
    monkeypatch.setattr(predict, "MACHINES", (machine,))
    monkeypatch.setattr(predict_mode, "EXPERTS", {"20b": 32})
    result = run("--predict")
    assert result.exit_code == 0, result.output
    assert "PREDICTION, not a measurement" in result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    rows = report["prediction_not_measurement"]["20b"]
    assert [row["memory_gib"] for row in rows] == [4, 16, 24]
    assert "slots" not in rows[0]
    assert rows[2]["slots"] == 32
    by_ssd = rows[1]["by_ssd"]
    rising = [by_ssd[str(ssd)]["plain"] for ssd in ASSUMED.ssd]
    assert rising == sorted(rising)
    assert rising[-1] < rows[1]["limit"] == pytest.approx(80e9 / sizes("20b", ASSUMED).token, 1e-4)
    assert rows[1]["worst"]["3000000000.0"]["plain"] < by_ssd["3000000000.0"]["plain"]
    assert report["assumptions"]["utilisation"] == 0.8
    less = json.loads(run("--predict", "--memory", "6").stdout.splitlines()[-1])
    assert less["prediction_not_measurement"]["20b"][1]["slots"] < rows[1]["slots"]


def test_a_trace_becomes_a_table_and_one_json_line(trace: Path) -> None:
    result = run("--trace", trace)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    expected = compare(load(trace))
    found = report["hit_rates"]["short"]
    assert set(found) == set(POLICIES)
    for name, hits in expected.items():
        assert found[name] == {str(s): pytest.approx(hit, abs=1e-4) for s, hit in hits.items()}
    assert report["loads_over_limit"][LIMIT] == {"mean": 1.0, "worst": 1.0}
    assert set(report["lookahead"]["short"]["8"]) == {"1", "2", "3", "4"}
    assert f"{100 * expected[PRODUCT][0.5]:.1f}" in result.stderr
    assert "one layer ahead" in result.stderr


def test_tiny_is_recorded_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = synthesise("tiny", SKEWED)
    monkeypatch.setattr(trace_mode, "record_tiny", lambda count: replace(made, name=f"{count}"))
    kept = tmp_path / "kept.npz"
    result = run("--trace", "tiny", "--conversations", "3", "--keep", kept)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(load(kept).chosen, made.chosen)
    assert load(kept).name == "3"


def test_made_up_routing_is_no_evidence_of_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_mode, "synthetic", lambda: iter([synthesise("made", SKEWED)]))
    report = json.loads(run("--trace", "synthetic").stdout.splitlines()[-1])
    assert "made" in report["hit_rates"]
    assert report["lookahead"] == {}


def test_the_hit_rates_are_drawn(trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = run("--trace", trace, "--plot", tmp_path / "hits.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "hits.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_so_first(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("--trace", trace, "--plot", tmp_path / "hits.png")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "pip install 'gptoss-mlx[benchmarks]'" in result.output
    assert run("--trace", trace).exit_code == 0


def test_a_missing_trace_is_one_line(tmp_path: Path) -> None:
    result = run("--trace", tmp_path / "none.npz")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1


def test_a_mode_is_needed() -> None:
    assert run().exit_code == 2
