"""Run everything once on a Mac; write one JSON file and a page of Markdown to send back.

    python -m benchmarks.mac
    python -m benchmarks.mac --full

What the machine is, whether each kernel agrees with its reference, the GPU's copy bandwidth, each
kernel against MLX's operations for the same at gpt-oss-20b's shapes, and prefill and decode of a
whole model by us, mlx-lm and llama.cpp. Every measurement is a process of its own with a time
limit: what fails, crashes, hangs or is not there is a row that says so. Both files are written
anew after every measurement, so that an interrupt loses nothing. Nothing is downloaded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.mac.plan import JOBS, LIMIT, Options, first, tasks
from benchmarks.mac.report import as_markdown, as_object, shown
from benchmarks.mac.rows import Row, Task, run


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("gptoss-mac"), show_default=True
)
@click.option("--model", default="tiny", show_default=True, help="A folder, an id, or tiny.")
@click.option("--full", is_flag=True, help="Make a random 20b (27 GB at most) in OUT for a model.")
@click.option("--recipe", default="8", show_default=True, help="What --full converts it to.")
@click.option("--gguf", help="The same model for llama.cpp's llama-bench.")
@click.option("--device", type=click.Choice(["cpu"]), help="Compute there, even if there is a GPU.")
@click.option("--shape", type=click.Choice(["20b", "small"]), default="20b", show_default=True)
@click.option("--prompt-tokens", "prompt", default=512, show_default=True, type=click.IntRange(2))
@click.option("--decode-tokens", "decode", default=64, show_default=True, type=click.IntRange(2))
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Of a model.")
@click.option("--limit", default=LIMIT, show_default=True, help="Of a small measurement, seconds.")
@click.option(
    "--job", "jobs", multiple=True, type=click.Choice(JOBS), help="Only this; repeatable."
)
def main(**values: Any) -> None:
    """Measure this machine; one JSON line last."""
    options = Options(**values)
    console = Console(stderr=True)
    rows = measure(options, console)
    written = options.out / "results.json"
    bad = sum(row.state not in ("ok", "absent") for row in rows)
    console.print(f"{len(rows)} measurements, {bad} of them not well: {written}, results.md")
    print(json.dumps({"benchmark": "mac", "rows": len(rows), "bad": bad, "file": str(written)}))


def measure(options: Options, console: Console) -> list[Row]:
    """Every row, each kept on disk as soon as it is there. An interrupt ends it early."""
    rows: list[Row] = []
    when = time.strftime("%Y-%m-%d %H:%M")
    options.out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        begun = bar.add_task("machine")

        def take(tasks: Sequence[Task]) -> None:
            bar.update(begun, total=len(rows) + len(tasks))
            for task in tasks:
                bar.update(begun, description=task.name)
                rows.append(run(task))
                bar.advance(begun)
                if console.is_terminal:
                    console.print(f"{task.name}: {shown(rows[-1])}", markup=False)
                keep(options, when, rows)

        try:
            take([first(options)])
            take(tasks(options, rows[0].figures.get("operations", ())))
        except KeyboardInterrupt:
            console.print("interrupted; what was measured is kept")
    return rows


def keep(options: Options, when: str, rows: Sequence[Row]) -> None:
    """Write both files, each whole or not at all."""
    value = json.dumps(as_object(rows, when, options.plain()), indent=1)
    page = as_markdown(rows, when, options.plain())
    for name, text in (("results.json", value + "\n"), ("results.md", page)):
        temporary = options.out / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(options.out / name)


if __name__ == "__main__":
    main()
