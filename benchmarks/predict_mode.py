"""`bench_memory --predict`: what Macs would do, as tables and a report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.predict import GIB, Assumptions, Prediction, predict, sizes
from benchmarks.synthetic import EXPERTS


def prediction_report(console: Console, memory: float | None) -> dict[str, Any]:
    """Predict both released sizes -> the report's entries.

    memory: GiB that are used of every machine, None for all that its GPU may.
    """
    assumptions = Assumptions() if memory is None else Assumptions(budget=memory * GIB)
    report: dict[str, Any] = {}
    for shape in EXPERTS:
        found = list(predict(shape, assumptions))
        _show_predictions(console, shape, found, assumptions)
        report[shape] = [_row(prediction) for prediction in found]
    given = asdict(assumptions) | {"budget": None if memory is None else assumptions.budget}
    return {"prediction_not_measurement": report, "assumptions": given}


def _row(prediction: Prediction) -> dict[str, Any]:
    row = _rounded_deep(asdict(prediction))
    return {key: value for key, value in row.items() if value not in ({}, None)}


def _rounded_deep(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded_deep(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _show_predictions(
    console: Console, shape: str, found: list[Prediction], assumptions: Assumptions
) -> None:
    size = sizes(shape, assumptions)
    title = (
        f"PREDICTION, not a measurement: gpt-oss-{shape}, tokens a second\n"
        f"{size.token / 1e9:.2f} GB a token at {100 * assumptions.utilisation:.0f} % of the "
        f"memory's bandwidth, {size.expert / 1e6:.2f} MB a miss, {assumptions.routing} routing;\n"
        "by SSD: without and with reading ahead; last: 3 GB/s, "
        f"{assumptions.worst} routing"
    )
    ssds = [f"{ssd / 1e9:g} GB/s" for ssd in assumptions.ssd]
    table = Table("chip", title=title)
    for column in ("GB", "slots", "hits %", "all in memory", *ssds, "worst"):
        table.add_column(column, justify="right")
    chip = ""
    for row in found:
        if row.chip != chip:
            table.add_section()
        chip = row.chip
        if row.slots is None:
            table.add_row(chip, str(row.memory_gib), "too small")
            continue
        rates = [f"{rates.plain:.1f} {rates.stopped:.1f}" for rates in row.by_ssd.values()]
        worst = [f"{rates.stopped:.1f}" for ssd, rates in row.worst.items() if ssd == 3e9]
        head = (str(row.memory_gib), str(row.slots), f"{100 * row.hit_rate:.1f}")
        blank = ["" for _ in assumptions.ssd]
        table.add_row(chip, *head, f"{row.limit:.1f}", *(rates or blank), *(worst or [""]))
    console.print(table)
