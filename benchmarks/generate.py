"""Load, prefill and decode of a checkpoint, beside a peer on the same files in the same run.

Every measurement is a fresh process, ours and the peer's in turn; medians are reported, and ratios
pair by pair. The speed limit of a decoded token is its bytes read over the memory bandwidth, which
is measured here too, by reading a large array with as many threads as there are cores.

    python -m benchmarks.generate --model DIR --peer mlx-lm
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.models.hub import locate

FIGURES = {
    "first_token_s": "process start to first token, s",
    "load_s": "load, s",
    "peak_gib": "peak memory, GiB",
    "prefill_tok_s": "prefill, tok/s",
    "decode_tok_s": "decode, tok/s",
}


@click.command()
@click.option("--model", default="tiny", show_default=True, help="A folder, an id, or tiny.")
@click.option("--peer", type=click.Choice(["mlx-lm"]), help="Measure this one too.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of both.")
@click.option("--prompt-tokens", default=128, show_default=True, type=click.IntRange(2))
@click.option("--decode-tokens", default=64, show_default=True, type=click.IntRange(2))
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--cat/--no-cat", default=True, help="Time reading the same files with cat.")
@click.option("--worker", type=click.Choice(["gptoss_mlx", "mlx-lm"]), hidden=True)
@click.option("--started", type=float, hidden=True)
def main(worker: str | None, started: float | None, **options: Any) -> None:
    """Measure load, prefill and decode; one JSON line last."""
    if worker is not None:
        measure = ours if worker == "gptoss_mlx" else mlx_lm
        print(json.dumps(measure(started or time.time(), **_measured(options))))
        return
    try:
        folder = locate(options["model"])
        report = _report(folder, options)
    except GptOssError as error:
        raise click.ClickException(str(error)) from None
    _show(report)
    print(json.dumps(report))


def _measured(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "folder": Path(options["model"]),
        "dtype": options["dtype"],
        "prompt": options["prompt_tokens"],
        "decode": options["decode_tokens"],
    }


def _report(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    names = ["gptoss_mlx"] + ([options["peer"]] if options["peer"] else [])
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    cats = []
    for _ in range(options["runs"]):
        if options["cat"]:
            cats.append(_cat(folder))
        for name in names:
            runs[name].append(_spawn(name, folder, options))
    bandwidth = _bandwidth()
    token = bytes_a_token(folder, options["dtype"] or _default_dtype())
    ours = runs["gptoss_mlx"]
    medians = {name: _medians(measured) for name, measured in runs.items()}
    report: dict[str, Any] = {
        "benchmark": "generate",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "model": folder.name,
        "dtype": options["dtype"] or _default_dtype(),
        "prompt_tokens": options["prompt_tokens"],
        "decode_tokens": options["decode_tokens"],
        "runs": options["runs"],
        "medians": medians,
        "bandwidth_gb_s": round(bandwidth / 1e9, 2),
        "bytes_a_token": token,
        "limit_tok_s": round(bandwidth / token, 2),
        "share_of_limit": round(medians["gptoss_mlx"]["decode_tok_s"] * token / bandwidth, 4),
    }
    if cats:
        report["cat_s"] = round(statistics.median(cats), 3)
        pairs = [run["load_s"] / cat for run, cat in zip(ours, cats, strict=True)]
        report["load_over_cat"] = round(statistics.median(pairs), 3)
    if options["peer"]:
        theirs = runs[options["peer"]]
        report["ratios_to_peer"] = {
            figure: round(
                statistics.median(a[figure] / b[figure] for a, b in zip(ours, theirs, strict=True)),
                3,
            )
            for figure in FIGURES
        }
    return report


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {figure: round(statistics.median(run[figure] for run in runs), 4) for figure in FIGURES}


def _spawn(name: str, folder: Path, options: dict[str, Any]) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.generate", "--worker", name]
    command += ["--model", str(folder), "--prompt-tokens", str(options["prompt_tokens"])]
    command += ["--decode-tokens", str(options["decode_tokens"])]
    command += ["--dtype", options["dtype"]] if options["dtype"] else []
    command += ["--started", repr(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise GptOssError(f"{name} failed with exit code {done.returncode}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _prompt(count: int, vocab: int) -> list[int]:
    """Ids of nothing in particular, the same for everyone."""
    rng = np.random.default_rng(0)
    return [int(id) for id in rng.integers(0, min(vocab, 50000), count)]


def ours(started: float, folder: Path, dtype: str | None, prompt: int, decode: int) -> Any:
    """The FIGURES of one run, and what the device held at most beside the plan's sum, GiB."""
    import gptoss_mlx
    from gptoss_mlx.engine.events import FinishEvent, TokenEvent

    begun = time.perf_counter()
    engine = gptoss_mlx.load(str(folder), dtype=dtype)
    load = time.perf_counter() - begun
    ids = _prompt(prompt, engine.config.vocab_size)
    stops = {id: -100.0 for id in engine.tokenizer.stop_ids}
    first = 0.0
    options: dict[str, Any] = {"raw": True, "temperature": 0.0, "logit_bias": stops}
    for event in engine.stream(ids, max_tokens=decode, **options):
        if isinstance(event, TokenEvent) and not first:
            first = time.time() - started
        if isinstance(event, FinishEvent):
            timings = event.timings
    # The last token of the prompt is read by the first decode step.
    rest = timings.prefill + timings.decode - timings.first_token
    return {
        "first_token_s": first,
        "load_s": load,
        "peak_gib": _peak_gib(),
        "prefill_tok_s": prompt / timings.first_token,
        "decode_tok_s": (timings.decode_tokens - 1) / rest,
        "device_peak_gib": engine.stats()["peak_bytes"] / 2**30,
        "plan_gib": None if engine.plan is None else engine.plan.total / 2**30,
    }


def mlx_lm(started: float, folder: Path, dtype: str | None, prompt: int, decode: int) -> Any:
    """The same of mlx-lm, which plans nothing."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model, load_tokenizer

    begun = time.perf_counter()
    model, config = load_model(folder, lazy=dtype is not None)
    if dtype is not None:
        model.set_dtype(getattr(mx, dtype))
        mx.eval(model.parameters())
    if (folder / "tokenizer.json").exists():
        load_tokenizer(folder)
    load = time.perf_counter() - begun
    ids = mx.array(_prompt(prompt, config["vocab_size"]))
    begun, first, ends = time.perf_counter(), 0.0, []
    for _ in generate_step(ids, model, max_tokens=decode):
        first = first or time.time() - started
        ends.append(time.perf_counter())
    return {
        "first_token_s": first,
        "load_s": load,
        "peak_gib": _peak_gib(),
        "prefill_tok_s": prompt / (ends[0] - begun),
        "decode_tok_s": (len(ends) - 1) / (ends[-1] - ends[0]),
        "device_peak_gib": mx.get_peak_memory() / 2**30,
    }


def _peak_gib() -> float:
    """The largest resident size of this process so far."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _default_dtype() -> str:
    import mlx.core as mx

    return "bfloat16" if mx.default_device() == mx.Device(mx.gpu) else "float32"


def bytes_a_token(folder: Path, dtype: str) -> int:
    """Weights read for one decoded token: all but the experts not chosen and the embedding."""
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    wide = 4 if dtype == "float32" else 2
    total = 0
    for name, tensor in checkpoint.tensors.items():
        nbytes = tensor.nbytes * wide // 2 if tensor.dtype == "BF16" else tensor.nbytes
        if name.startswith("model.embed_tokens."):
            continue
        if ".mlp.experts." in name:
            nbytes = nbytes * config.num_experts_per_tok // config.num_local_experts
        total += nbytes
    return total


def _bandwidth() -> float:
    """Bytes a second that all cores together read, the best of five passes over 1 GiB."""
    cores = os.cpu_count() or 1
    parts = [np.ones((1 << 27) // cores, np.float64) for _ in range(cores)]
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            begun = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, sum(p.nbytes for p in parts) / (time.perf_counter() - begun))
    return best


def _cat(folder: Path) -> float:
    """Seconds to read the checkpoint's tensors with cat."""
    files = sorted(str(path) for path in folder.glob("*.safetensors"))
    begun = time.perf_counter()
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['model']}, {report['dtype']}, {report['machine']}")
    table.add_column("median")
    names = list(report["medians"])
    for name in names:
        table.add_column(name, justify="right")
    if "ratios_to_peer" in report:
        table.add_column("ratio", justify="right")
    for figure, title in FIGURES.items():
        row = [title, *(f"{report['medians'][name][figure]:.3f}" for name in names)]
        if "ratios_to_peer" in report:
            row.append(f"{report['ratios_to_peer'][figure]:.2f}")
        table.add_row(*row)
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
