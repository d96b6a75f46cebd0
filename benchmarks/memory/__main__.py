"""Experts in less memory than they take: how many hits, what speed, at which budget.

    python -m benchmarks.memory --model DIR --budget 8 --budget 4 --peer mlx-lm --plot x.png

Runs a checkpoint under memory limits that the kernel enforces (Linux, root), and draws speed, hits
and bytes read against them; see budgets.py. The table goes to stderr.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.memory.budgets import Asked, sweep_report
from gptoss_mlx.errors import GptOssError

WIDTH = 110  # columns of a table where no terminal says otherwise


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--budget", "budgets", multiple=True, type=float, required=True, help="GiB.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(["mlx-lm"]), help="Run it too.")
@click.option(
    "--llama",
    nargs=2,
    type=click.Path(path_type=Path, exists=True),
    metavar="BENCH GGUF",
    help="Run llama-bench too.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the figures here (.png).")
@click.option("--context", default=2048, show_default=True, help="Tokens to plan for.")
@click.option("--prompt-tokens", default=8, show_default=True, type=click.IntRange(2))
@click.option("--decode-tokens", default=8, show_default=True, type=click.IntRange(1))
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
def main(
    model: Path,
    budgets: tuple[float, ...],
    peers: tuple[str, ...],
    llama: tuple[Path, Path] | None,
    plot: Path | None,
    context: int,
    prompt_tokens: int,
    decode_tokens: int,
    dtype: str,
) -> None:
    """Run under limits; one JSON line last."""
    report: dict[str, Any] = {
        "benchmark": "memory",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = WIDTH
    asked = Asked(model, context, prompt_tokens, decode_tokens, dtype)
    try:
        report |= sweep_report(console, asked, budgets, peers, plot, llama)
    except GptOssError as error:
        raise click.ClickException(str(error)) from None
    print(json.dumps(report))


if __name__ == "__main__":
    main()
