"""Thousands of short requests, several at a time, some cancelled: what is left of them.

Memory is noted after every request; each thousand's median is reported, beside the threads, the
open files and the sequences' states that are left at the end.

    python -m benchmarks.serve.soak --requests 5000
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import statistics
import threading
from datetime import date
from typing import Any

import click
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import gptoss_mlx
from gptoss_mlx.backends.state import Rewindable
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event, FinishEvent, TokenEvent
from gptoss_mlx.engine.sequence import Sequence
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.models.hub import locate
from gptoss_mlx.system.heap import return_freed

MiB = 1 << 20
BLOCK = 1000  # requests of a row of the report


class Caller:
    """Sends one request after another; an outlet of the present one."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.engine, self.rng = engine, random.Random(number)
        self.sequence: Sequence | None = None
        self.done = self.cancelled = self.tokens = 0
        self._until = 0

    def send(self) -> None:
        """A prompt of one of four conversations, or of its own; a fifth is cancelled early."""
        rng, start = self.rng, self.rng.randrange(4) * 50
        prompt = [1000 + start + i for i in range(rng.randint(1, 40))]
        prompt += [rng.randrange(50_000) for _ in range(rng.randint(1, 8))]
        self._until = rng.randint(1, 4) if rng.random() < 0.2 else 1000
        options: dict[str, Any] = {"raw": True, "temperature": 1.0, "seed": rng.randrange(1 << 30)}
        self.sequence = self.engine.add(prompt, self, max_tokens=rng.randint(1, 12), **options)

    def put(self, event: Event) -> None:
        if isinstance(event, TokenEvent):
            self.tokens += 1
            self._until -= 1
            if self._until == 0 and self.sequence is not None:
                self.sequence.cancel()
        if isinstance(event, FinishEvent):
            self.done += 1
            self.cancelled += event.reason == "cancelled"
            self.sequence = None

    def fail(self, error: BaseException) -> None:
        raise error

    def is_full(self) -> bool:
        return False


@click.command()
@click.option("--model", default="tiny", show_default=True, help="A folder, an id, or tiny.")
@click.option("--backend", type=click.Choice(["mlx", "torch"]), help="What computes.")
@click.option("--requests", default=5000, show_default=True, type=click.IntRange(1))
@click.option("--callers", default=8, show_default=True, type=click.IntRange(1, 32))
@click.option("--cache", default="32MiB", show_default=True, help="Of the prefix store.")
def main(model: str, backend: str | None, requests: int, callers: int, cache: str) -> None:
    """Send many short requests and see what is left; one JSON line last."""
    try:
        report = soak(model, backend, requests, callers, cache)
    except GptOssError as error:
        raise click.ClickException(str(error)) from None
    _show(report)
    print(json.dumps(report))


def soak(
    model: str, backend: str | None, requests: int, callers: int, cache: str
) -> dict[str, Any]:
    """cache: the prefix store's bytes, few enough that the first thousand requests fill it."""
    process = psutil.Process()
    threads = threading.active_count()
    folder = locate(model)
    files = process.num_fds()
    rows: list[dict[str, float]] = []
    options: dict[str, Any] = {"parallel": callers, "context": 1024, "cache": cache}
    with gptoss_mlx.load(folder, backend=backend, **options) as engine:
        senders = [Caller(engine, number) for number in range(callers)]
        done, resident, active = 0, list[float](), list[float]()
        with Progress(console=Console(stderr=True), disable=not os.isatty(2)) as bar:
            task = bar.add_task("requests", total=requests)
            while done < requests:
                for caller in senders:
                    if caller.sequence is None:
                        caller.send()
                engine.step()
                before, done = done, sum(caller.done for caller in senders)
                bar.update(task, completed=done)
                if done > before:
                    resident.append(process.memory_info().rss / MiB)
                    active.append(engine.stats()["active_bytes"] / MiB)
                if done // BLOCK > before // BLOCK or done >= requests:
                    return_freed()
                    rows.append(_row(done, resident, active))
                    resident, active = [], []
        engine.drop([caller.sequence for caller in senders if caller.sequence is not None])
        tokens = sum(caller.tokens for caller in senders)
        cancelled = sum(caller.cancelled for caller in senders)
    del engine, senders
    gc.collect()
    return {
        "benchmark": "soak",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "date": date.today().isoformat(),
        "model": folder.name,
        "backend": backend,
        "requests": done,
        "callers": callers,
        "cache": cache,
        "tokens": tokens,
        "cancelled": cancelled,
        "blocks": rows,
        "threads_left": threading.active_count() - threads,
        "files_left": process.num_fds() - files,
        "states_left": sum(isinstance(thing, Rewindable) for thing in gc.get_objects()),
    }


def _row(done: int, resident: list[float], active: list[float]) -> dict[str, float]:
    return {
        "requests": done,
        "resident_mib": round(statistics.median(resident), 2),
        "active_mib": round(statistics.median(active), 2),
    }


def _show(report: dict[str, Any]) -> None:
    table = Table(title="medians of memory, MiB")
    for column in ("requests", "resident", "of the model"):
        table.add_column(column, justify="right")
    for row in report["blocks"]:
        table.add_row(*(str(value) for value in row.values()))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
