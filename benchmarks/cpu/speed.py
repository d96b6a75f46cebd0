"""How fast does a CPU load a model, read a prompt and write, and how fast is its memory?

Ours, then llama.cpp and mlx-lm on the same weights, each in processes of their own, one after
another. The memory's bandwidth is measured in our process, before and after.

    python -m benchmarks.cpu.speed --model DIR --llama BIN model.gguf --mlx-lm

BIN is the folder of llama-bench and llama-batched-bench. curves.py draws what this prints.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cpu.peers import Asked, llama, mlx_lm, spawn
from gptoss_mlx.backends.cpu.library import Device
from gptoss_mlx.backends.cpu.model import Transformer, open_model
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.models.hub import locate
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.system.cores import fast_cores

READ = 1 << 28  # bytes that are read to measure the bandwidth
SCALED_PROMPT = 512  # tokens, of the prompt that is read with fewer threads


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


def measure(folder: Path, asked: Asked) -> dict[str, Any]:
    """Ours, in this process."""
    begun = time.perf_counter()
    with Checkpoint.open(folder) as checkpoint:
        longest = max(0, *asked.prompts, *asked.contexts) + asked.steps + 1
        rows = max(1, *asked.streams)
        model = open_model(checkpoint, context=longest, rows=rows, threads=asked.threads)
    loaded = round(time.perf_counter() - begun, 2)
    before = bandwidth(model.device)
    return {
        "variant": model.device.variant,
        "threads": model.device.threads,
        "load_s": loaded,
        "decode_tok_s": {n: decode_rate(model, n, 0, asked.steps) for n in asked.streams},
        "decode_at_tok_s": {n: decode_rate(model, 1, n, asked.steps) for n in asked.contexts},
        "prefill_tok_s": {n: prefill_rate(model, n) for n in asked.prompts},
        "bandwidth_gb_s": [before, bandwidth(model.device)],
    }


def ours(folder: Path, asked: Asked) -> dict[str, Any]:
    """Ours, in a process of its own."""
    values = json.dumps([str(folder), asdict(asked)])
    text, peak = spawn(sys.executable, "-m", "benchmarks.cpu.speed", "--worker", values)
    return {**json.loads(text.splitlines()[-1]), "peak_gib": peak}


def scaling(folder: Path, threads: int, steps: int) -> dict[str, dict[int, float]]:
    """Decoding and reading with fewer threads, down to one."""
    decode, prefill = dict[int, float](), dict[int, float]()
    count = threads // 2
    while count:
        found = ours(folder, Asked([SCALED_PROMPT], [1], [], steps, count))
        decode[count] = found["decode_tok_s"]["1"]
        prefill[count] = found["prefill_tok_s"][str(SCALED_PROMPT)]
        count //= 2
    return {"threads_decode_tok_s": decode, "threads_prefill_tok_s": prefill}


def rest_of(config: ModelConfig) -> str:
    """What the projections beside the experts are in."""
    spec = config.quantization and config.quantization.of("model.layers.0.self_attn.q_proj")
    return f"{spec.bits} bits" if spec else "bfloat16"


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


@click.command(help=__doc__)
@click.option("--model", default="tiny", show_default=True, help="A folder, an id, or tiny.")
@click.option(
    "--llama", "peer", nargs=2, type=click.Path(exists=True, path_type=Path), metavar="BIN GGUF"
)
@click.option("--mlx-lm", "with_mlx_lm", is_flag=True)
@click.option("--prompts", default="128,512", show_default=True, callback=_numbers)
@click.option("--streams", default="1,4,8", show_default=True, callback=_numbers)
@click.option("--contexts", default="2048", show_default=True, callback=_numbers)
@click.option("--steps", default=16, show_default=True, type=click.IntRange(3))
@click.option("--threads", default=fast_cores, type=click.IntRange(1), help="By default all.")
@click.option("--scaling", "scaled", is_flag=True, help="Also with fewer threads.")
@click.option("--worker", hidden=True)
def main(
    model: str,
    peer: tuple[Path, Path] | None,
    with_mlx_lm: bool,
    prompts: list[int],
    streams: list[int],
    contexts: list[int],
    steps: int,
    threads: int,
    scaled: bool,
    worker: str | None,
) -> None:
    if worker is not None:
        name, values = json.loads(worker)
        print(json.dumps(measure(Path(name), Asked(**values))))
        return
    folder = locate(model)
    with Checkpoint.open(folder) as checkpoint:
        rest = rest_of(checkpoint.config)
    asked = Asked(prompts, streams, contexts, steps, threads)
    found = {"ours": ours(folder, asked)}
    if scaled:
        found["ours"] |= scaling(folder, threads, steps)
    if peer is not None:
        found["llama.cpp"] = llama(*peer, asked)
    if with_mlx_lm:
        found["mlx-lm"] = mlx_lm(folder)
    table = Table("", *found)
    for name in found["ours"]:
        table.add_row(name, *(str(each.get(name, "")) for each in found.values()))
    Console(width=110, stderr=True).print(table)
    about = {"machine": f"{platform.machine()}, {platform.system()}", "date": str(date.today())}
    report = {"benchmark": "cpu_speed", **about, "model": folder.name, "rest": rest, **found}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
