"""The model in PyTorch on one NVIDIA card, at full size with random weights, in a few minutes.

What the card can do; memory beside what it should be; decode and prefill; each layer beside the
references; each operation beside plain PyTorch; the engine. The weights are made on the card, so
that no checkpoint is needed; --folder also times loading one. Results are written to the JSON file
row by row, and what fails becomes a row. Tables come last on stderr, then one JSON line on stdout.

    python -m benchmarks.cuda --json cuda.json
    python -m benchmarks.cuda --device cpu --model tiny     tries the benchmark itself
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from benchmarks.cuda.layers import layers
from benchmarks.cuda.pieces import pieces
from benchmarks.cuda.setup import LITTLE, QUICK, Amounts, Bench, Row, Section, config_of, line
from benchmarks.cuda.speed import card, decode, memory, prefill
from benchmarks.cuda.tables import say, show
from benchmarks.cuda.talk import engine, folder
from gptoss_mlx.backends.backend import choose_backend
from gptoss_mlx.backends.torch.choice import choose_kernels
from gptoss_mlx.backends.torch.current import launching_on
from gptoss_mlx.errors import GptOssError

SECTIONS: Mapping[str, Callable[[Bench], Section]] = {
    "card": card,
    "memory": memory,
    "decode": decode,
    "prefill": prefill,
    "layers": layers,
    "pieces": pieces,
    "engine": engine,
    "folder": folder,
}
"""In the order they run: the goals' figures first, should time run out."""

TRIAL = "--device cpu --model tiny tries the benchmark itself"


@dataclass
class Report:
    """All that is known so far; `path` always holds it whole."""

    head: Row
    path: Path | None = None
    sections: dict[str, Row] = field(default_factory=dict)

    def text(self) -> str:
        return json.dumps(plain({**self.head, "sections": self.sections}), allow_nan=False)

    def write(self) -> None:
        if self.path is not None:
            part = self.path.with_name(f"{self.path.name}.part")
            part.write_text(self.text() + "\n", encoding="utf-8")
            part.replace(self.path)


def plain(value: Any) -> Any:
    """As JSON has it: floats with six digits, and what is no number as a text."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def run(bench: Bench, report: Report, names: Sequence[str], begun: float, limit: float) -> None:
    """Every named section, until `limit` seconds after the beginning are over."""
    for name in names:
        kept: Row = {"seconds": 0.0, "rows": []}
        report.sections[name] = kept
        started = time.perf_counter()
        try:
            for row in SECTIONS[name](bench):
                kept["rows"].append(row)
                kept["seconds"] = time.perf_counter() - started
                report.write()
                say(name, row)
                if time.perf_counter() - begun > limit:
                    kept["rows"].append({"left_out": f"{limit:g} s are over"})
                    break
        except Exception as error:  # whatever it is, the other sections can still be measured
            kept["rows"].append({"error": line(error)})
            say(name, kept["rows"][-1])
        kept["seconds"] = time.perf_counter() - started
        report.write()
        with suppress(Exception):  # after some errors a card does nothing more
            bench.release()


@click.command()
@click.option(
    "--model",
    "--shape",
    "name",
    type=click.Choice(["120b", "20b", "tiny"]),
    default="120b",
    show_default=True,
    help="Its sizes; tiny is for a CPU.",
)
@click.option("--layers", "count", type=click.IntRange(2), help="Instead of all.")
@click.option("--bits", type=click.Choice(["8"]), help="Of matrices other than the experts'.")
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, .., or cpu.")
@click.option("--chunk", default=2048, show_default=True, type=click.IntRange(1, 2048))
@click.option("--quick", is_flag=True, help="Fewer sizes, and one layer in six.")
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="Not all.")
@click.option("--limit", default=480.0, show_default=True, help="Seconds; the rest is left out.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A checkpoint to load, up to its first token.",
)
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path))
def main(
    name: str,
    count: int | None,
    bits: str | None,
    device: str,
    chunk: int,
    quick: bool,
    only: Sequence[str],
    limit: float,
    folder: Path | None,
    path: Path | None,
) -> None:
    """Measure the model on a card; one JSON line last."""
    if device == "cpu" and name != "tiny":
        raise click.ClickException(f"the {name} is measured on a card; {TRIAL}")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    amounts = LITTLE if name == "tiny" else QUICK if quick else Amounts()
    begun = time.perf_counter()
    try:
        place = torch.device(choose_backend("torch", device).device)
        with launching_on(place):
            kernels = choose_kernels(place, dtype)
    except GptOssError as error:
        raise click.ClickException(f"{error}; {TRIAL}") from None
    config = config_of(name, count)
    bench = Bench(config, amounts, place, dtype, kernels, chunk, bits and int(bits), folder)
    head: Row = {
        "benchmark": "cuda",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "date": datetime.now(UTC).date().isoformat(),
        "model": name,
        "layers": config.num_hidden_layers,
        "bits": bits and int(bits),
        "quick": quick,
        "weights": "random, made on the device",
        "checked_s": time.perf_counter() - begun,
    }
    report = Report(head, path)
    wanted = [n for n in SECTIONS if not only or n in only or n in ("card", "memory")]
    with torch.no_grad(), launching_on(place):
        run(bench, report, wanted, begun, limit)
    show(Console(stderr=True, width=150), report.head, report.sections)
    click.echo(report.text())


if __name__ == "__main__":
    main()
