"""Experts in less memory than they take: which policy, how many hits, what speed.

    python -m benchmarks.bench_memory --trace tiny --trace synthetic --plot policies.png
    python -m benchmarks.bench_memory --predict

`--trace` replays routing through cache policies: "tiny" records the tiny model, "synthetic" makes
routing up (see synthetic.py), anything else is a file as written by traces.save. `--predict` says
what Macs would do that have not been measured. The tables go to stderr.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.predict_mode import prediction_report
from benchmarks.trace_mode import replay_report
from gptoss_mlx.errors import GptOssError

WIDTH = 110  # columns of a table where no terminal says otherwise


@click.command()
@click.option("--trace", "names", multiple=True, help="A file, tiny or synthetic; repeatable.")
@click.option("--conversations", default=2, show_default=True, help="Of each skill, for tiny.")
@click.option("--keep", type=click.Path(path_type=Path), help="Write tiny's trace here (.npz).")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the hit rates here (.png).")
@click.option("--predict", "predicted", is_flag=True, help="Predict the speed of Macs.")
@click.option("--memory", type=float, help="GiB the prediction uses; all it may, if not given.")
def main(
    names: tuple[str, ...],
    conversations: int,
    keep: Path | None,
    plot: Path | None,
    predicted: bool,
    memory: float | None,
) -> None:
    """Replay routing or predict speed; one JSON line last."""
    if not names and not predicted:
        raise click.UsageError("give --trace or --predict")
    report: dict[str, Any] = {
        "benchmark": "memory",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = WIDTH
    try:
        if names:
            report |= replay_report(console, names, conversations, keep, plot)
        if predicted:
            report |= prediction_report(console, memory)
    except GptOssError as error:
        raise click.ClickException(str(error)) from None
    print(json.dumps(report))


if __name__ == "__main__":
    main()
