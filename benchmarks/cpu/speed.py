"""How fast does a CPU load a model, read a prompt and write, and how fast is its memory?

Ours in a process of its own, and llama.cpp's llama-bench on the same weights after it. The memory's
bandwidth is measured in the same process, before and after.

    python -m benchmarks.cpu.speed --model DIR --llama llama-bench model.gguf
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from gptoss_mlx.backends.cpu.library import Device
from gptoss_mlx.backends.cpu.model import Transformer, open_model
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.models.hub import locate
from gptoss_mlx.system.device import peak_bytes

READ = 1 << 28  # bytes that are read to measure the bandwidth


def seconds(run: Callable[[], object], times: int) -> float:
    """The median time of a call."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def bandwidth(device: Device) -> float:
    """GB a second that all threads read together."""
    memory = np.ones(READ, np.uint8)
    return round(memory.nbytes / seconds(lambda: device.read(memory), 7) / 1e9, 1)


def decode_rate(model: Transformer, streams: int, context: int, steps: int) -> float:
    """Tokens a second of all streams, behind a context that holds zeros."""
    rng, states = np.random.default_rng(0), [model.new_state() for _ in range(streams)]
    for state in states:
        state.reserve(context + steps)
        state.offset = context

    def step() -> None:
        ids = rng.integers(0, model.config.vocab_size, streams).tolist()
        model.decode([[id] for id in ids], states)

    step()
    return round(streams / seconds(step, steps - 1), 2)


def prefill_rate(model: Transformer, tokens: int) -> float:
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, tokens).tolist()
    state, begun = model.new_state(), time.perf_counter()
    for start in range(0, tokens, model.chunk):
        model.prefill(ids[start : start + model.chunk], state)
    return round(tokens / (time.perf_counter() - begun), 2)


def ours(
    folder: Path, prompts: list[int], streams: list[int], contexts: list[int], steps: int
) -> dict[str, Any]:
    begun = time.perf_counter()
    with Checkpoint.open(folder) as checkpoint:
        longest = max(*prompts, *contexts) + steps + 1
        model = open_model(checkpoint, context=longest, rows=max(streams))
    loaded = round(time.perf_counter() - begun, 2)
    before = bandwidth(model.device)
    return {
        "variant": model.device.variant,
        "threads": model.device.threads,
        "load_s": loaded,
        "decode_tok_s": {n: decode_rate(model, n, 0, steps) for n in streams},
        "decode_at_tok_s": {n: decode_rate(model, 1, n, steps) for n in contexts},
        "prefill_tok_s": {n: prefill_rate(model, n) for n in prompts},
        "bandwidth_gb_s": [before, bandwidth(model.device)],
        "peak_gib": round(peak_bytes() / 2**30, 2),
    }


def llama(command: str, file: str, prompts: list[int], steps: int, threads: int) -> dict[str, Any]:
    numbers = ",".join(map(str, prompts))
    options = ["-m", file, "-p", numbers, "-n", str(steps), "-t", str(threads), "-r", "2"]
    done = subprocess.run(
        [command, *options, "-o", "json"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    return {
        "build": found[0]["build_commit"],
        "decode_tok_s": {1: next(round(f["avg_ts"], 2) for f in found if f["n_gen"])},
        "prefill_tok_s": {f["n_prompt"]: round(f["avg_ts"], 2) for f in found if f["n_prompt"]},
    }


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


@click.command(help=__doc__)
@click.option("--model", default="tiny", show_default=True, help="A folder, an id, or tiny.")
@click.option("--llama", "peer", nargs=2, metavar="BENCH GGUF", help="llama-bench, and its file.")
@click.option("--prompts", default="128,512", show_default=True, callback=_numbers)
@click.option("--streams", default="1,4,8", show_default=True, callback=_numbers)
@click.option("--contexts", default="2048", show_default=True, callback=_numbers)
@click.option("--steps", default=16, show_default=True, type=click.IntRange(3))
def main(
    model: str,
    peer: tuple[str, str] | None,
    prompts: list[int],
    streams: list[int],
    contexts: list[int],
    steps: int,
) -> None:
    folder = locate(model)
    found = {"ours": ours(folder, prompts, streams, contexts, steps)}
    if peer is not None:
        found["llama.cpp"] = llama(*peer, prompts, steps, found["ours"]["threads"])
    table = Table("", *found)
    for name in found["ours"]:
        table.add_row(name, *(str(figures.get(name, "")) for figures in found.values()))
    Console(width=110).print(table)
    about = {"machine": f"{platform.machine()}, {platform.system()}", "date": str(date.today())}
    print(json.dumps({"benchmark": "cpu_speed", **about, "model": folder.name, **found}))


if __name__ == "__main__":
    main()
