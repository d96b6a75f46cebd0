"""Decoding several streams at a time: what a joint step brings over one stream.

Every number of streams is measured in turn, several rounds of them, and the medians are reported.
What is measured are the steps in which all streams decode, so that --tokens must be larger than
their number.

    python -m benchmarks.serve.parallel --model DIR --backend torch --peer mlx-lm
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import gptoss_mlx
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event, PrefillEvent, TokenEvent
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.models.hub import locate

PROMPT = 32  # tokens


@click.command()
@click.option("--model", default="tiny", show_default=True, help="A folder, an id, or tiny.")
@click.option("--backend", type=click.Choice(["mlx", "torch", "cpu"]), help="What computes.")
@click.option("--streams", default="1,2,4,8", show_default=True, help="Numbers of streams.")
@click.option("--tokens", default=48, show_default=True, type=click.IntRange(4), help="Of each.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--bare", is_flag=True, help="The model's steps alone: no sampling, no text.")
@click.option("--long", default=0, show_default=True, help="Tokens of a prompt that comes between.")
@click.option("--peer", type=click.Choice(["mlx-lm"]), help="Measure this one too.")
def main(
    model: str,
    backend: str | None,
    streams: str,
    tokens: int,
    rounds: int,
    bare: bool,
    long: int,
    peer: str | None,
) -> None:
    """Measure tokens a second of several streams; one JSON line last."""
    counts = [int(count) for count in streams.split(",")]
    try:
        folder = locate(model)
        report: dict[str, Any] = {
            "benchmark": "parallel",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "date": date.today().isoformat(),
            "model": folder.name,
            "backend": backend,
            "tokens": tokens,
            "rounds": rounds,
            "bare": bare,
        }
        rate = stepped if bare else decoded
        with gptoss_mlx.load(folder, backend=backend, parallel=max(counts)) as engine:
            report["dtype"] = None if engine.plan is None else engine.plan.dtype
            report["ours"] = measured(counts, rounds, lambda n: rate(engine, n, tokens))
            if long:
                report["waits"] = waits(engine, long)
        if peer is not None:
            batch = _mlx_lm(folder)
            report["mlx-lm"] = measured(counts, rounds, lambda n: batch(n, tokens))
    except GptOssError as error:
        raise click.ClickException(str(error)) from None
    _show(report)
    print(json.dumps(report))


def measured(
    counts: Sequence[int], rounds: int, rate: Callable[[int], float]
) -> dict[str, dict[str, float]]:
    """By number of streams: tokens a second in all, and over those of the first number."""
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            found[count].append(rate(count))
    first = found[counts[0]]
    return {
        str(count): {
            "tok_s": round(statistics.median(rates), 3),
            "ratio": round(statistics.median(a / b for a, b in zip(rates, first, strict=True)), 3),
        }
        for count, rates in found.items()
    }


def decoded(engine: Engine, streams: int, tokens: int) -> float:
    """Tokens a second of all streams together, while all of them decode."""
    times: list[list[float]] = [[] for _ in range(streams)]
    asked: dict[str, Any] = {"raw": True, "max_tokens": tokens, "temperature": 0.0}
    banned = {id: -100.0 for id in engine.tokenizer.stop_ids if id < engine.config.vocab_size}
    for i, event in engine.stream_many(
        prompts(streams), **asked, logit_bias=banned, stop_repetition=False
    ):
        if isinstance(event, TokenEvent):
            times[i].append(time.perf_counter())
    begun, ended = max(own[0] for own in times), min(own[-1] for own in times)
    return sum(sum(begun < at <= ended for at in own) for own in times) / (ended - begun)


def stepped(engine: Engine, streams: int, steps: int) -> float:
    """Tokens a second of the model's decode steps alone, of so many sequences."""
    model = engine.model
    states = [model.new_state() for _ in range(streams)]
    for state, prompt in zip(states, prompts(streams), strict=True):
        model.prefill(prompt, state)
    times = []
    for step in range(steps):
        begun = time.perf_counter()
        tokens = [[1000 + 97 * step + i] for i in range(streams)]
        _ = [np.asarray(row) for row in model.decode(tokens, states)]
        times.append(time.perf_counter() - begun)
    for state in states:
        state.close()
    return streams / statistics.median(times[1:])  # the first step may allocate


def prompts(streams: int) -> list[list[int]]:
    return [[1000 + 37 * i + j for j in range(PROMPT)] for i in range(streams)]


class _Events:
    """An outlet that keeps what comes."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        self.events.append(event)

    def fail(self, error: BaseException) -> None:
        raise error

    def is_full(self) -> bool:
        return False


def waits(engine: Engine, length: int) -> dict[str, float]:
    """The longest wait of a running answer for a token while a prompt of that length is read: in
    chunks of the prompt, and in seconds beside those of a token and of a chunk."""
    options: dict[str, Any] = {"raw": True, "temperature": 0.0, "stop_repetition": False}
    answer, other = _Events(), _Events()
    first = engine.add(prompts(1)[0], answer, max_tokens=2 * length, **options)
    while len(answer.events) < 20:
        engine.step()
    second = engine.add([7 + i % 900 for i in range(length)], other, max_tokens=1, **options)
    most, longest, steps = 0, 0.0, 0
    while not any(isinstance(event, TokenEvent) for event in other.events):
        said, read, begun = len(answer.events), len(other.events), time.perf_counter()
        while len(answer.events) == said:
            engine.step()
            steps += 1
        chunks = sum(
            isinstance(event, PrefillEvent) and event.done > event.reused  # the first has read none
            for event in other.events[read:]
        )
        most, longest = max(most, chunks), max(longest, time.perf_counter() - begun)
    engine.drop([first, second])
    return {"prompt_tokens": length, "most_chunks": most, "longest_s": round(longest, 4)}


def _mlx_lm(folder: Path) -> Callable[[int, int], float]:
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.utils import load_model

    model = load_model(folder)[0]

    def rate(streams: int, tokens: int) -> float:
        generator = BatchGenerator(model, max_tokens=tokens, completion_batch_size=streams)
        generator.insert(prompts(streams))
        times: dict[int, list[float]] = {}
        while responses := generator.next_generated():
            for response in responses:
                times.setdefault(response.uid, []).append(time.perf_counter())
        begun = max(own[0] for own in times.values())
        ended = min(own[-1] for own in times.values())
        return sum(sum(begun < at <= ended for at in own) for own in times.values()) / (
            ended - begun
        )

    return rate


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"tokens a second, {report['model']}")
    names = [name for name in ("ours", "mlx-lm") if name in report]
    for column in ("streams", *(f"{name}{what}" for name in names for what in ("", ", ratio"))):
        table.add_column(column, justify="right")
    for count in report["ours"]:
        cells = [report[name][count] for name in names]
        table.add_row(count, *(str(cell[key]) for cell in cells for key in ("tok_s", "ratio")))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
