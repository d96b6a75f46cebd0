"""What benchmarks.cuda prints: a line for each row as it comes, and a table of the goals last."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "decode": (
        *("batch", "context", "fed", "tok_s", "limit_tok_s", "ms", "experts_a_layer"),
        *("share_of_read", "share_of_copy", "first_s"),
    ),
    "prefill": ("tokens", "tok_s", "tflop_s", "share_of_matmul", "activations_gib", "first_s"),
    "pieces": (
        *("tokens", "operation", "where", "by", "us", "share_of_read", "share_of_matmul"),
        *("plain_us", "plain"),
    ),
    "engine": ("streams", "temperature", "tok_s", "ms"),
}
GOALS = (
    ("decode, batch 1, context 1k", "decode", {"batch": 1, "context": 1024}, 450),
    ("decode, batch 32, context 1k", "decode", {"batch": 32, "context": 1024}, 3000),
    ("prefill, 8k", "prefill", {"tokens": 8192}, 15000),
)
"""tok/s of the whole 120b with random weights on an H200."""
LIMIT = 852  # tok/s of one sequence where its weights are read at the speed of memory


def say(section: str, row: Row) -> None:
    """One line on stderr, so that a run that is cut off has said what it knew."""
    found = ", ".join(f"{key} {shown(value)}" for key, value in row.items())
    print(f"{section}: {found}", file=sys.stderr, flush=True)


def shown(value: Any) -> str:
    """Three digits of a float; of a table of operations, those that are not Triton's."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, Mapping):
        others = {key: item for key, item in value.items() if item != "triton"}
        return "all triton" if not others else str(others)
    return "-" if value is None else str(value)


def show(console: Console, head: Row, sections: Mapping[str, Row]) -> None:
    """A table of each section, then the layers' worst, then times, then the goals."""
    for name, columns in COLUMNS.items():
        rows = [row for row in sections.get(name, {}).get("rows", []) if not _failed(row)]
        if rows:
            table = Table(*(column.replace("_", " ") for column in columns), title=name)
            for row in rows:
                table.add_row(*(shown(row.get(column)) for column in columns))
            console.print(table)
    for row in sections.get("layers", {}).get("rows", []):
        if isinstance(row.get("layer"), str):
            console.print("layers: " + ", ".join(f"{k} {shown(v)}" for k, v in row.items()))
    for name, section in sections.items():
        for row in filter(_failed, section["rows"]):
            console.print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    for row in sections.get("card", {}).get("rows", []):
        if "operations" in row and shown(row["operations"]) != "all triton":
            console.print(f"without kernels of their own: {shown(row['operations'])}")
    parts = [f"{name} {section['seconds']:.0f}" for name, section in sections.items()]
    console.print(f"seconds: checking kernels {head['checked_s']:.0f}, " + ", ".join(parts))
    table = Table(
        "goal", "tok/s", "goal, 120b on an H200", "limit of this card", title=_title(head)
    )
    for cells in goals(sections):
        table.add_row(*cells)
    console.print(table)


def goals(sections: Mapping[str, Row]) -> Iterator[tuple[str, str, str, str]]:
    """(what, measured, wanted, the card's limit) of each goal."""
    for what, section, wanted, goal in GOALS:
        rows = sections.get(section, {}).get("rows", [])
        row: Row = next((r for r in rows if wanted.items() <= r.items() and "tok_s" in r), {})
        said = f"{goal}, limit {LIMIT}" if goal == GOALS[0][3] else str(goal)
        yield what, shown(row.get("tok_s")), said, shown(row.get("limit_tok_s"))


def _title(head: Row) -> str:
    bits = "" if head["bits"] is None else f", {head['bits']} bits"
    return f"{head['model']}, {head['layers']} layers{bits}, random weights"


def _failed(row: Row) -> bool:
    return "error" in row or "left_out" in row
