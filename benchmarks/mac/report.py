"""The rows as one JSON object, and as a page of Markdown for people."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.mac.plan import JOBS
from benchmarks.mac.rows import Row

FORMAT = 1
FIGURES = {
    "load_s": "load, s",
    "prefill_tok_s": "prefill, tok/s",
    "decode_tok_s": "decode, tok/s",
    "first_token_s": "start to first token, s",
    "device_peak_gib": "device peak, GiB",
    "plan_gib": "plan, GiB",
    "peak_gib": "process peak, GiB",
}


def as_object(rows: Sequence[Row], when: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for programs. The machine's facts are its row's figures."""
    machine = next((row.figures for row in rows if row.name == "machine"), {})
    return {
        "benchmark": "mac",
        "format": FORMAT,
        "when": when,
        "options": dict(options),
        "machine": dict(machine),
        "rows": [asdict(row) for row in rows],
    }


def as_markdown(rows: Sequence[Row], when: str, options: Mapping[str, Any]) -> str:
    """The same as tables."""
    jobs = {job: [row for row in rows if row.about.get("job") == job] for job in JOBS}
    asked = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    parts = [f"# gptoss_mlx on a machine, {when}\n\n{asked}\n"]
    parts += [_machine(jobs["machine"])]
    parts += [_device([row for job in ("bandwidth", "launches", "cache") for row in jobs[job]])]
    parts += [_checks(jobs["check"]), _kernels(jobs["kernel"], _bandwidth(rows))]
    parts += [_models([*jobs["generate"], *jobs["llama-bench"]]), _others(rows)]
    return "\n".join(part for part in parts if part)


def shown(row: Row) -> str:
    """A row in one line: its figures, or what became of it."""
    if row.state != "ok":
        return f"{row.state}: {row.why}"
    return ", ".join(f"{name} {_figure(value)}" for name, value in row.figures.items())


def _machine(rows: Sequence[Row]) -> str:
    facts = [
        (name, _size(value) if name.endswith("_bytes") else value)
        for row in rows
        for name, value in row.figures.items()
        if name != "operations" and value is not None
    ]
    return _table("The machine", ("", ""), facts)


def _device(rows: Sequence[Row]) -> str:
    return _table("Its device", ("", ""), [(row.name, shown(row)) for row in rows])


def _checks(rows: Sequence[Row]) -> str:
    lines = [(row.about["operation"], row.about["dtype"], shown(row)) for row in rows]
    return _table("Kernels against their references", ("kernel", "dtype", ""), lines)


def _kernels(rows: Sequence[Row], bandwidth: float | None) -> str:
    """A line for each case: ours, MLX's operations for the same, and how much faster."""
    cases: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row.about["case"], row.about["tokens"]), {})[row.about["by"]] = row
    lines = []
    for (case, tokens), found in cases.items():
        metal, mlx = found.get("metal"), found.get("mlx")
        times = [row.figures.get("us") if row else None for row in (metal, mlx)]
        faster = f"{times[1] / times[0]:.2f}" if times[0] and times[1] else ""
        lines.append((case, tokens, *_time(metal, bandwidth), *_time(mlx, bandwidth), faster))
    head = ("", "tokens", "ours, µs", "GB/s", "of copy", "MLX, µs", "GB/s", "of copy", "times")
    return _table("Kernels against MLX's operations", head, lines)


def _time(row: Row | None, bandwidth: float | None) -> tuple[str, str, str]:
    if row is None or row.state != "ok":
        return (row.state if row else "", "", "")
    rate = row.figures["gb_s"]
    share = f"{100 * rate / bandwidth:.0f} %" if bandwidth else ""
    return f"{row.figures['us']:.1f}", f"{rate:.1f}", share


def _models(rows: Sequence[Row]) -> str:
    """Medians of the runs of each runtime."""
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        runtime = row.about.get("runtime", "llama.cpp")
        runs.setdefault((runtime, str(row.about.get("model", ""))), []).append(row)
    lines = []
    for (runtime, _), found in runs.items():
        well = [row.figures for row in found if row.state == "ok"]
        bad = next((row for row in found if row.state != "ok"), None)
        medians = [_median(well, figure) for figure in FIGURES]
        shares = [
            {"of": run["device_peak_gib"] / run["plan_gib"]} for run in well if run.get("plan_gib")
        ]
        of = _median(shares, "of")
        lines.append((runtime, len(well), *medians, of, bad.state if bad else ""))
    head = ("", "runs", *FIGURES.values(), "device peak / plan", "")
    return _table("Whole models", head, lines)


def _median(runs: Iterable[Mapping[str, Any]], figure: str) -> str:
    values = [run[figure] for run in runs if run.get(figure) is not None]
    return _figure(statistics.median(values)) if values else ""


def _others(rows: Sequence[Row]) -> str:
    """What has no figures, by what became of it."""
    names: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.state != "ok":
            names.setdefault((row.state, row.why), []).append(row.name)
    lines = [(state, why, "; ".join(those)) for (state, why), those in names.items()]
    return _table("Not measured", ("", "why", "what"), lines)


def _bandwidth(rows: Iterable[Row]) -> float | None:
    """GB/s of the copy."""
    found = [
        row.figures["gb_s"] for row in rows if row.about.get("job") == "bandwidth" and row.figures
    ]
    return max(found, default=None)


def _table(title: str, head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    if not lines:
        return ""
    texts = [head, ["---"] * len(head), *lines]
    body = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in texts)
    return f"## {title}\n\n{body}\n"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _size(value: Any) -> str:
    return f"{value / 2**30:.2f} GiB"
