"""Converting a checkpoint, beside `cp` and a peer on the same files in the same run.

Each is a fresh process and a fresh folder, in turn; the page cache is whatever the one before left,
so the order changes from run to run. The time includes flushing the result to the disk, for all
alike. "rest" is the time MLX takes to quantize everything besides the experts, in memory.

    python -m benchmarks.convert --model DIR --work DIR --peer mlx-lm
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from convert.plan import Plan, to_mlx
from convert.sources import open_source
from gptoss_mlx.spec.recipe import RECIPES


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="For the results.")
@click.option("--bits", type=click.Choice(list(RECIPES)), default="8", show_default=True)
@click.option("--peer", multiple=True, type=click.Choice(["mlx-lm"]))
@click.option("--runs", default=1, show_default=True, type=click.IntRange(1))
def main(model: Path, work: Path, bits: str, peer: tuple[str, ...], runs: int) -> None:
    """Measure the conversion; one JSON line last."""
    source = open_source(model)
    plan = to_mlx(source, RECIPES[bits])
    work.mkdir(parents=True, exist_ok=True)
    names = ["gptoss_mlx", "cp", *peer]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for run in range(runs):
        turn = run % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(_measured(_command(name, model, work / name, bits), work / name))
    report = {
        "benchmark": "convert",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "model": model.name,
        "bits": bits,
        "runs": runs,
        "result_bytes": plan.nbytes,
        "medians": {name: _medians(measured) for name, measured in found.items()},
        "rest_s": round(_rest(plan), 2),
    }
    seconds = {name: report["medians"][name]["seconds"] for name in names}
    report["over_cp_and_rest"] = round(
        seconds["gptoss_mlx"] / (seconds["cp"] + report["rest_s"]), 3
    )
    for name in peer:
        report[f"{name}_over_ours"] = round(seconds[name] / seconds["gptoss_mlx"], 2)
    _show(report)
    print(json.dumps(report))


def _command(name: str, model: Path, folder: Path, bits: str) -> list[str]:
    if name == "cp":
        return ["cp", "-rL", str(model), str(folder)]
    if name == "gptoss_mlx":
        return [sys.executable, "-m", "convert", str(model), str(folder), "--bits", bits, "--quiet"]
    quantize = [] if bits == "bf16" else ["-q", "--q-bits", bits, "--q-group-size", "64"]
    peer = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(model)]
    return [*peer, "--mlx-path", str(folder), *quantize]


def _measured(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds until the result is on the disk, peak resident memory, and bytes a second."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise click.ClickException(f"{' '.join(command)} failed with {process.returncode}")
    nbytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    shutil.rmtree(folder)
    return {"seconds": seconds, "peak_gib": _gib(usage), "mb_s": nbytes / seconds / 1e6}


def _gib(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def _rest(plan: Plan) -> float:
    """Seconds that MLX alone takes to quantize what the plan quantizes, with nothing else to do."""
    from convert import rules

    seconds = 0.0
    for task in plan.tasks:
        if task.spec is None:
            continue
        for start, stop in task.spans():
            rows = task.piece.read(start, stop)
            begun = time.perf_counter()
            rules.quantized(task.spec, rows, task.piece.shape[1])
            seconds += time.perf_counter() - begun
    return seconds


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['model']} to {report['bits']}, {report['machine']}")
    for column in ("", "seconds", "peak GiB", "MB/s"):
        table.add_column(column, justify="right" if column else "left")
    for name, figures in report["medians"].items():
        table.add_row(name, *(f"{figures[key]:.2f}" for key in ("seconds", "peak_gib", "mb_s")))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
