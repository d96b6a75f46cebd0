"""Experts in less memory than they take: which policy, how many hits, what speed.

    python -m benchmarks.bench_memory --model DIR --budget 8 --budget 4 --peer mlx-lm --plot x.png
    python -m benchmarks.bench_memory --trace tiny --trace synthetic --plot policies.png
    python -m benchmarks.bench_memory --predict

`--trace` replays routing through cache policies: "tiny" records the tiny model, "synthetic" makes
routing up (see synthetic.py), anything else is a file as written by traces.save. `--predict` says
what Macs would do that have not been measured. `--model` runs a checkpoint under memory limits that
the kernel enforces (Linux, root) and draws speed, hits and bytes read against them; see budgets.py.
The tables go to stderr.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.budgets import Asked, sweep_report
from benchmarks.predict_mode import prediction_report
from benchmarks.trace_mode import replay_report
from gptoss_mlx.errors import GptOssError

WIDTH = 110  # columns of a table where no terminal says otherwise


@click.command()
@click.option("--trace", "names", multiple=True, help="A file, tiny or synthetic; repeatable.")
@click.option("--conversations", default=2, show_default=True, help="Of each skill, for tiny.")
@click.option("--keep", type=click.Path(path_type=Path), help="Write tiny's trace here (.npz).")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the figures here (.png).")
@click.option("--predict", "predicted", is_flag=True, help="Predict the speed of Macs.")
@click.option("--memory", type=float, help="GiB the prediction uses; all it may, if not given.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="Run this folder.")
@click.option("--budget", "budgets", multiple=True, type=float, help="GiB; repeatable.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(["mlx-lm"]), help="Run it too.")
@click.option("--context", default=2048, show_default=True, help="Tokens to plan for.")
@click.option("--prompt-tokens", default=8, show_default=True, type=click.IntRange(2))
@click.option("--decode-tokens", default=8, show_default=True, type=click.IntRange(1))
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
def main(
    names: tuple[str, ...],
    conversations: int,
    keep: Path | None,
    plot: Path | None,
    predicted: bool,
    memory: float | None,
    model: Path | None,
    budgets: tuple[float, ...],
    peers: tuple[str, ...],
    context: int,
    prompt_tokens: int,
    decode_tokens: int,
    dtype: str,
) -> None:
    """Run under limits, replay routing or predict speed; one JSON line last."""
    if not names and not predicted and model is None:
        raise click.UsageError("give --model, --trace or --predict")
    if bool(budgets) != (model is not None):
        raise click.UsageError("--model and --budget go together")
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
        if model is not None:
            asked = Asked(model, context, prompt_tokens, decode_tokens, dtype)
            report |= sweep_report(console, asked, budgets, peers, None if names else plot)
    except GptOssError as error:
        raise click.ClickException(str(error)) from None
    print(json.dumps(report))


if __name__ == "__main__":
    main()
