"""The memory plan against what a process really takes, over shapes, contexts and budgets.

Every case is a random checkpoint planned, opened and driven in a process of its own to the most its
plan allows: snapshots up to their budget, a prompt that fills the context with whole chunks, and
tokens drawn with top-p, penalties and log-probabilities. The parent samples the process's
anonymous resident memory (RssAnon: pages of mapped files can be dropped at any time and do not
count) every millisecond; the figure is its peak over the plan's sum. Linux only.

    python -m benchmarks.memory.plan [--torch | --cpu]
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.memory.confine import anonymous
from convert import destination
from convert.plan import to_mlx
from convert.sources import open_source
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.plan.buffers import SNAPSHOT_BUDGET
from gptoss_mlx.plan.memory import Plan, make_plan
from gptoss_mlx.settings import Settings
from gptoss_mlx.spec.recipe import RECIPES
from gptoss_mlx.system.machine import Machine
from gptoss_mlx.system.units import parse_bytes, show_bytes
from tests.support.checkpoints import Shape, write_checkpoint

CPU = Machine("this machine", None, None, False)
DECODED = 8  # tokens
INTERVAL = 0.001  # seconds

MANY_EXPERTS = Shape(6, 1024, 1024, 64, 4, 16, 4, 64)
MANY_HEADS = Shape(8, 768, 256, 8, 4, 16, 16, 128)
FEW_LAYERS = Shape(4, 768, 256, 8, 4, 16, 16, 128)
SMALL_EXPERTS = Shape(4, 768, 768, 64, 4, 16, 16, 128)
WIDE_EXPERTS = Shape(4, 768, 1536, 16, 4, 16, 16, 128)
WIDE = Shape(layers=4, experts=4)


@dataclass(frozen=True)
class Case:
    """A checkpoint, what is asked of its plan, and of the converter (a recipe) before that."""

    shape: Shape
    context: int
    budget: str | None = None
    recipe: str | None = None
    dtype: str = "float32"
    embedding: str | None = None
    backend: str = "mlx"
    rows: int = 1


CASES = {
    "many heads, short": Case(MANY_HEADS, 1024),
    "many heads, long": Case(MANY_HEADS, 3072),
    "many heads, long, less memory": Case(MANY_HEADS, 3072, budget="1280MiB"),
    "many heads, bfloat16": Case(MANY_HEADS, 1536, dtype="bfloat16", embedding="resident"),
    "many experts, short": Case(MANY_EXPERTS, 768),
    "many experts, long": Case(MANY_EXPERTS, 1536),
    "many experts, mixed bits": Case(MANY_EXPERTS, 768, recipe="mixed"),
    "released widths": Case(WIDE, 768),
    "released widths, 8 bits": Case(WIDE, 768, recipe="8", embedding="resident"),
    "released widths, mixed bits": Case(WIDE, 1280, recipe="mixed", embedding="resident"),
}
"""All experts in memory."""

STREAMING = {
    "many experts, half of them": Case(MANY_EXPERTS, 1024, budget="1500MiB"),
    "many experts, few of them": Case(MANY_EXPERTS, 512, budget="1350MiB"),
}
"""Fewer slots than experts."""

TORCH = {
    "many heads": Case(FEW_LAYERS, 2048, backend="torch"),
    "many heads, 4 sequences": Case(FEW_LAYERS, 1024, backend="torch", rows=4),
    "many heads, bfloat16": Case(FEW_LAYERS, 1536, dtype="bfloat16", backend="torch"),
    "wide experts": Case(WIDE_EXPERTS, 512, backend="torch"),
    "small experts, half of them": Case(SMALL_EXPERTS, 512, budget="1850MiB", backend="torch"),
    "wide experts, 8 bits": Case(WIDE_EXPERTS, 512, recipe="8", backend="torch"),
    "wide experts, mixed bits": Case(WIDE_EXPERTS, 512, recipe="mixed", backend="torch"),
}
"""With PyTorch on the CPU."""

KERNELS = {
    "many heads, short": Case(MANY_HEADS, 1024, backend="cpu"),
    "many heads, long": Case(MANY_HEADS, 3072, backend="cpu"),
    "many heads, bfloat16": Case(MANY_HEADS, 1536, dtype="bfloat16", backend="cpu"),
    "many experts": Case(MANY_EXPERTS, 1536, backend="cpu"),
    "many experts, half of them": Case(MANY_EXPERTS, 1024, budget="1100MiB", backend="cpu"),
    "released widths": Case(WIDE, 768, backend="cpu"),
    "released widths, 8 bits": Case(WIDE, 768, recipe="8", embedding="resident", backend="cpu"),
    "released widths, mixed bits": Case(WIDE, 1280, recipe="mixed", backend="cpu"),
}
"""With the kernels of native/, every weight copied, since what is mapped can be dropped."""


@click.command()
@click.option("--only", multiple=True, help="Cases whose name begins so.")
@click.option("--streaming", is_flag=True, help="Also cases with fewer slots than experts.")
@click.option("--torch", "with_torch", is_flag=True, help="Those of PyTorch instead.")
@click.option("--cpu", "with_kernels", is_flag=True, help="Those of the kernels for CPUs instead.")
@click.option("--worker", hidden=True)
def main(
    only: tuple[str, ...],
    streaming: bool,
    with_torch: bool,
    with_kernels: bool,
    worker: str | None,
) -> None:
    """Compare plans with measurements; one JSON line last."""
    if worker is not None:
        _drive(**json.loads(worker))
        return
    cases = {**CASES, **(STREAMING if streaming else {})}
    if with_torch or with_kernels:
        cases = TORCH if with_torch else KERNELS
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name, case in cases.items():
            if not only or name.startswith(only):
                rows.append(_row(name, case, Path(work)))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    _show(rows)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    worst = max((abs(row["measured_over_plan"] - 1) for row in rows), default=0.0)
    print(
        json.dumps(
            {
                "benchmark": "plan",
                "backend": next(iter(cases.values())).backend,
                "machine": machine,
                "worst": round(worst, 4),
                "cases": rows,
            }
        )
    )


def _row(name: str, case: Case, work: Path) -> dict[str, Any]:
    folder = _checkpoint(case, work)
    with Checkpoint.open(folder) as checkpoint:
        plan = plan_of(case, checkpoint)
    peak = _peak(folder, plan)
    return {
        "case": name,
        "context": plan.context,
        "budget": plan.budget,
        "slots": plan.slots,
        "experts": plan.experts,
        "chunk": plan.chunk,
        "plan": plan.total,
        "measured": peak,
        "measured_over_plan": round(peak / plan.total, 4),
        "buffers": {buffer.name: buffer.nbytes for buffer in plan.buffers},
    }


def plan_of(case: Case, checkpoint: Checkpoint) -> Plan:
    """The case's plan on a CPU, of a machine nothing else is known of."""
    return make_plan(
        checkpoint.config,
        replace(CPU, backend=case.backend),
        Settings(
            memory=None if case.budget is None else parse_bytes(case.budget),
            context=case.context,
            dtype=case.dtype,
            embedding=case.embedding,
            parallel=case.rows,
        ),
    )


def _checkpoint(case: Case, work: Path) -> Path:
    """Made once for each shape and recipe; the one before is removed, for they are large."""
    name = f"{abs(hash(case.shape))}-{case.recipe}"
    folder = work / name
    if not folder.exists():
        for other in work.iterdir():
            shutil.rmtree(other)
        released = write_checkpoint(work / "released" if case.recipe else folder, case.shape)
        if case.recipe is not None:
            plan = to_mlx(source := open_source(released), RECIPES[case.recipe])
            destination.write(source, plan, folder)
            shutil.rmtree(released)
    return folder


def _peak(folder: Path, plan: Plan) -> int:
    """Bytes of anonymous memory a process that follows the plan had at most."""
    task = {"folder": str(folder), **{k: v for k, v in asdict(plan).items() if k in _FOLLOWED}}
    command = [sys.executable, "-m", "benchmarks.memory.plan", "--worker", json.dumps(task)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks = [0]

    def watch() -> None:
        while process.poll() is None:
            peaks[0] = max(peaks[0], anonymous(process.pid))
            time.sleep(INTERVAL)

    watcher = Thread(target=watch)
    watcher.start()
    watcher.join()
    if process.returncode != 0:
        raise click.ClickException(f"{folder.name} failed with exit code {process.returncode}")
    return peaks[0]


_FOLLOWED = (
    "context",
    "slots",
    "experts",
    "chunk",
    "cache_limit",
    "embedding",
    "dtype",
    "backend",
    "rows",
)


def _drive(folder: str, context: int, **plan: Any) -> None:
    """Open a model as planned and take it to its limits."""
    from gptoss_mlx.engine.engine import Engine
    from gptoss_mlx.harmony.tokenizer import load_tokenizer

    checkpoint = Checkpoint.open(Path(folder))
    tokenizer = load_tokenizer(Path(folder), checkpoint.config)
    opened = {"mlx": _open_mlx, "torch": _open_torch, "cpu": _open_kernels}
    model = opened[plan["backend"]](checkpoint, context, **plan)
    engine = Engine(model, tokenizer, checkpoint.config, context, {})
    rng = np.random.default_rng(0)
    ids = [int(id) for id in rng.integers(0, 50000, context - DECODED)]
    rows: int = plan["rows"]
    options: dict[str, Any] = {
        "raw": True,
        "seed": 0,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "top_logprobs": 5,
        "logit_bias": {id: -100.0 for id in tokenizer.stop_ids},
    }
    for length in _turns(model, len(ids), model.chunk):
        limit = DECODED if length == len(ids) else 1
        if rows == 1:
            engine.generate(ids[:length], max_tokens=limit, **options)
    if rows > 1:
        engine.generate_many([ids[i:] + ids[:i] for i in range(rows)], max_tokens=8, **options)


def _open_mlx(
    checkpoint: Checkpoint,
    context: int,
    *,
    slots: int,
    experts: int,
    chunk: int,
    cache_limit: int,
    embedding: str,
    dtype: str,
    **other: Any,
) -> Any:
    import mlx.core as mx

    from gptoss_mlx.backends.mlx.model import open_model

    mx.set_default_device(mx.Device(mx.cpu))
    fewer: dict[str, Any] = {"slots": slots} if slots < experts else {}
    model = open_model(checkpoint, dtype=dtype, embedding=embedding, **fewer)
    model.chunk = chunk
    mx.set_cache_limit(cache_limit)
    return model


def _open_torch(
    checkpoint: Checkpoint,
    context: int,
    *,
    slots: int,
    chunk: int,
    dtype: str,
    rows: int,
    **other: Any,
) -> Any:
    from gptoss_mlx.backends.torch.model import open_model

    asked: dict[str, Any] = {"dtype": dtype, "context": context, "rows": rows}
    return open_model(checkpoint, slots=slots, chunk=chunk, **asked)


def _open_kernels(
    checkpoint: Checkpoint,
    context: int,
    *,
    backend: str,
    experts: int,
    cache_limit: int,
    **plan: Any,
) -> Any:
    from gptoss_mlx.backends.cpu import model as kernels

    kernels.worth_copying = lambda checkpoint, total: True  # what is mapped is not counted
    return kernels.open_model(checkpoint, context=context, **plan)


def _turns(model: Any, length: int, chunk: int) -> Sequence[int]:
    """Lengths of prompts, each going on from the one before: a snapshot each, then whole chunks."""
    state = model.new_state()
    model.prefill([0, 1], state)
    rings = state.snapshot().nbytes
    first = (length - 1) % chunk  # where the whole chunks begin
    turns = SNAPSHOT_BUDGET // rings + 1
    while first < turns and first + 2 * chunk < length:
        first += chunk
    turns = min(turns, first)
    return [*range(first + 2 - turns, min(first + 2, length)), length]


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="plan and measurement")
    table.add_column("case")
    for column in ("context", "slots", "chunk", "plan", "measured", "over plan"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["case"],
            str(row["context"]),
            f"{row['slots']} of {row['experts']}",
            str(row["chunk"]),
            show_bytes(row["plan"]),
            show_bytes(row["measured"]),
            f"{100 * (row['measured_over_plan'] - 1):+.1f} %",
        )
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
