"""`bench_memory --trace`: routing replayed through cache policies, as tables and a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.curves import draw, need_matplotlib
from benchmarks.policies import LIMIT, PRODUCT
from benchmarks.replay import SHARES, Lookahead, compare, lookahead, over_limit, slots_for
from benchmarks.synthetic import synthetic
from benchmarks.traces import Trace, load, record_tiny, save

HitRates = Mapping[str, Mapping[float, float]]
"""By policy and share of slots."""


def replay_report(
    console: Console,
    names: tuple[str, ...],
    conversations: int,
    keep: Path | None,
    plot: Path | None,
) -> dict[str, Any]:
    """Replay each named trace -> the report's entries.

    names: "tiny", "synthetic" or files. conversations: of each skill, for tiny, whose trace is
    written to `keep`. plot: where to draw a PNG. Raises GptOssError for a file that is no trace,
    or if matplotlib is missing, before anything is replayed.
    """
    if plot is not None:
        need_matplotlib()
    found: dict[str, dict[str, dict[float, float]]] = {}
    ahead: dict[str, dict[int, dict[int, Lookahead]]] = {}
    steps: dict[str, int] = {}
    for trace, recorded in _traces(names, conversations, keep):
        found[trace.name], steps[trace.name] = compare(trace), len(trace.chosen)
        _show_rates(console, trace, found[trace.name])
        if recorded and trace.predicted is not None:
            ahead[trace.name] = _lookaheads(trace)
            _show_lookaheads(console, trace, ahead[trace.name])
    ratios = _ratios(found)
    _show_ratios(console, ratios)
    if plot is not None:
        draw(found, plot)
    return {
        "steps": steps,
        "product": PRODUCT,
        "hit_rates": {t: {p: _rounded(r) for p, r in of.items()} for t, of in found.items()},
        "loads_over_limit": ratios,
        "lookahead": {
            trace: {
                slots: {depth: _rounded(asdict(found)) for depth, found in depths.items()}
                for slots, depths in of.items()
            }
            for trace, of in ahead.items()
        },
    }


def _traces(
    names: tuple[str, ...], conversations: int, keep: Path | None
) -> Iterator[tuple[Trace, bool]]:
    """Each trace, and whether it was recorded (rather than made up)."""
    for name in names:
        if name == "tiny":
            trace = record_tiny(conversations)
            if keep is not None:
                save(trace, keep)
            yield trace, True
        elif name == "synthetic":
            yield from ((trace, False) for trace in synthetic())
        else:
            yield load(Path(name)), True


def _lookaheads(trace: Trace) -> dict[int, dict[int, Lookahead]]:
    """By slots, and by how many of the predicted experts are read."""
    assert trace.predicted is not None
    slots = [count for share in SHARES if (count := slots_for(trace, share)) is not None]
    return {
        count: {
            depth: found
            for depth in range(1, trace.predicted.shape[2] + 1)
            if (found := lookahead(trace, count, depth)) is not None
        }
        for count in slots
    }


def _ratios(found: Mapping[str, dict[str, dict[float, float]]]) -> dict[str, dict[str, float]]:
    """Each policy's loads over Belady's: mean and worst of all traces and shares."""
    every: dict[str, list[float]] = {}
    for rates in found.values():
        for name, ratios in over_limit(rates).items():
            every.setdefault(name, []).extend(ratios)
    return {
        name: {"mean": round(mean(ratios), 4), "worst": round(max(ratios), 4)}
        for name, ratios in every.items()
        if ratios
    }


def _rounded(rates: Mapping[Any, float]) -> dict[Any, float]:
    return {key: round(rate, 4) for key, rate in rates.items()}


def _table(title: str, first: str, columns: list[str]) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _show_rates(console: Console, trace: Trace, found: HitRates) -> None:
    shares = [share for share in SHARES if slots_for(trace, share) is not None]
    title = f"{trace.name}: hits in %, {len(trace.chosen)} steps, {trace.layers} layers, "
    title += f"{trace.k} of {trace.experts} experts"
    columns = [f"{100 * share:g} % ({slots_for(trace, share)})" for share in shares]
    table = _table(title, "policy \\ slots", columns)
    for name, rates in found.items():
        if name == LIMIT:
            table.add_section()
        style = "bold" if name == PRODUCT else None
        table.add_row(name, *(f"{100 * rates[share]:.1f}" for share in shares), style=style)
    console.print(table)


def _show_lookaheads(
    console: Console, trace: Trace, found: Mapping[int, Mapping[int, Lookahead]]
) -> None:
    title = f"{trace.name}: experts predicted one layer ahead, in %"
    columns = ["read", "of the chosen", "were right", "of the misses", "of the reads right"]
    table = _table(title, "slots", columns)
    for slots, depths in found.items():
        table.add_section()
        for depth, of in depths.items():
            figures = (of.recall, of.precision, of.of_misses, of.of_reads)
            table.add_row(str(slots), str(depth), *(f"{100 * figure:.1f}" for figure in figures))
    console.print(table)


def _show_ratios(console: Console, ratios: Mapping[str, Mapping[str, float]]) -> None:
    table = _table("loads over Belady's, all traces and slots", "policy", ["mean", "worst"])
    for name, of in ratios.items():
        style = "bold" if name == PRODUCT else None
        table.add_row(name, f"{of['mean']:.3f}", f"{of['worst']:.3f}", style=style)
    console.print(table)
