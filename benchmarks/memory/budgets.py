"""One model under several memory budgets, each enforced by the kernel, and what became of it.

Every budget is a fresh process, confined to exactly that many bytes (page cache included, no swap).
It loads by the plan, reads a short prompt, decodes, and gives the SHA-256 of every logit it
computed: the same for all budgets and for the process that was not confined. A peer computes in
the type it chooses; llama.cpp maps its file, and its llama-bench only decodes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.memory.confine import Outcome as Ended
from benchmarks.memory.confine import run
from benchmarks.memory.curves import draw_budgets, need_matplotlib
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.plan.memory import Plan
from gptoss_mlx.system.cores import fast_cores

GIB = 2**30


@dataclass(frozen=True)
class Asked:
    """context: tokens planned for; prompt and decode: tokens read and written."""

    folder: Path
    context: int
    prompt: int
    decode: int
    dtype: str


@dataclass(frozen=True)
class Outcome:
    """Of one budget (bytes; None for no limit). ended: "well", or what stopped it.

    plan, peak: bytes planned, and of anonymous memory used at most. hit_rate: of experts chosen
    while decoding. read: bytes of experts read for a decoded token. stall: seconds a token.
    """

    runtime: str
    budget: int | None
    ended: str
    peak: int
    plan: int = 0
    slots: int = 0
    load: float = 0.0
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    hit_rate: float = 1.0
    read: float = 0.0
    stall: float = 0.0
    logits: str = ""


def sweep_report(
    console: Console,
    asked: Asked,
    budgets: Sequence[float],
    peers: Sequence[str],
    plot: Path | None,
    llama: tuple[Path, Path] | None = None,
) -> dict[str, Any]:
    """Run everything, show the table, draw the curves; the figures as JSON values."""
    if plot is not None:
        need_matplotlib()
    outcomes = []
    for outcome in sweep(asked, budgets, peers, llama):
        outcomes.append(outcome)
        console.print(f"{outcome.runtime}, {_gib(outcome.budget)}: {outcome.ended}")
    show(console, outcomes, asked.folder.name)
    if plot is not None:
        runs = sorted((o.budget, o) for o in outcomes if o.slots and o.budget is not None)
        curves = {
            "tok/s": [o.decode_rate for _, o in runs],
            "hits, %": [100 * o.hit_rate for _, o in runs],
            "MB read a token": [o.read / 1e6 for _, o in runs],
        }
        draw_budgets([budget / GIB for budget, _ in runs], curves, plot)
    return {"model": asked.folder.name, "asked": _plain(asked), "runs": list(map(_plain, outcomes))}


def _plain(value: Asked | Outcome) -> dict[str, Any]:
    plain = asdict(value)
    return {k: v for k, v in plain.items() if not isinstance(v, Path)}


def _gib(budget: int | None) -> str:
    return "no limit" if budget is None else f"{budget / GIB:.1f} GiB"


def sweep(
    asked: Asked,
    budgets: Iterable[float],
    peers: Iterable[str],
    llama: tuple[Path, Path] | None = None,
) -> Iterator[Outcome]:
    """Ours without a limit, then under each budget (GiB), then each peer under the same; llama:
    its llama-bench and its file."""
    limits = [int(budget * GIB) for budget in budgets]
    for limit in (None, *limits):
        yield _outcome("gptoss_mlx", asked, limit)
    for peer in peers:
        for limit in limits:
            yield _outcome(peer, asked, limit)
    if llama is not None:
        for limit in (None, *limits):
            yield _llama(*llama, asked, limit)


def _outcome(runtime: str, asked: Asked, limit: int | None) -> Outcome:
    values = json.dumps({**asdict(asked), "folder": str(asked.folder), "limit": limit})
    command = [sys.executable, "-m", "benchmarks.memory.budgets", runtime, values]
    ended = run(command, limit)
    if ended.returncode != 0:
        return _failed(runtime, limit, ended)
    return Outcome(runtime, limit, "well", ended.peak, **json.loads(ended.stdout.splitlines()[-1]))


def _llama(bench: Path, file: Path, asked: Asked, limit: int | None) -> Outcome:
    options = ["-p", "0", "-n", str(asked.decode), "-r", "1", "-t", str(fast_cores()), "-o", "json"]
    ended = run([str(bench), "-m", str(file), *options], limit)
    if ended.returncode != 0:
        return _failed("llama.cpp", limit, ended)
    rate = json.loads(ended.stdout)[0]["avg_ts"]
    return Outcome("llama.cpp", limit, "well", ended.peak, decode_rate=rate)


def _failed(runtime: str, limit: int | None, ended: Ended) -> Outcome:
    last = ended.stderr.strip().splitlines()[-1:] or ["nothing said"]
    reason = "killed: out of memory" if ended.returncode == -9 else last[0]
    return Outcome(runtime, limit, reason, ended.peak)


def main() -> None:
    """The confined process: its own measurements as JSON on the last line."""
    runtime, values = sys.argv[1], json.loads(sys.argv[2])
    limit = values.pop("limit")
    asked = Asked(**{**values, "folder": Path(values["folder"])})
    print(json.dumps(_ours(asked, limit) if runtime == "gptoss_mlx" else _mlx_lm(asked)))


def _ours(asked: Asked, limit: int | None) -> dict[str, Any]:
    import gptoss_mlx

    begun = time.perf_counter()
    engine = gptoss_mlx.load(
        str(asked.folder), memory=limit, context=asked.context, dtype=asked.dtype
    )
    loaded = time.perf_counter()
    model, ids = engine.model, _prompt(asked, engine.config.vocab_size)
    state, digest = model.new_state(), sha256()
    model.prefill(ids[:-1], state)
    read = time.perf_counter()
    before, token = engine.stats(), ids[-1]
    for _ in range(asked.decode):
        logits = np.array(model.decode([[token]], [state])[0])
        digest.update(logits.tobytes())
        token = int(logits.argmax())
    decoding = time.perf_counter() - read
    after = engine.stats()
    counts = {
        name: after.get(name, 0) - before.get(name, 0)
        for name in ("hits", "misses", "bytes_read", "stall")
    }
    return {
        "plan": _plan(engine).total,
        "slots": _plan(engine).slots,
        "load": loaded - begun,
        "prefill_rate": (len(ids) - 1) / (read - loaded),
        "decode_rate": asked.decode / decoding,
        "hit_rate": counts["hits"] / max(1, counts["hits"] + counts["misses"])
        if counts["misses"]
        else 1.0,
        "read": counts["bytes_read"] / asked.decode,
        "stall": counts["stall"] / asked.decode,
        "logits": digest.hexdigest()[:16],
    }


def _mlx_lm(asked: Asked) -> dict[str, Any]:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache

    begun = time.perf_counter()
    model, _ = load(str(asked.folder))[:2]
    mx.eval(model.parameters())
    loaded = time.perf_counter()
    ids = _prompt(asked, model.args.vocab_size)
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array(ids[:-1])[None], cache=cache))
    read, token = time.perf_counter(), ids[-1]
    for _ in range(asked.decode):
        token = int(mx.argmax(model(mx.array([[token]]), cache=cache)[0, -1]).item())
    return {
        "load": loaded - begun,
        "prefill_rate": (len(ids) - 1) / (read - loaded),
        "decode_rate": asked.decode / (time.perf_counter() - read),
    }


def _plan(engine: Engine) -> Plan:
    assert engine.plan is not None
    return engine.plan


def _prompt(asked: Asked, vocab: int) -> list[int]:
    return [
        int(id) for id in np.random.default_rng(0).integers(0, min(vocab, 199998), asked.prompt)
    ]


def show(console: Console, outcomes: Iterable[Outcome], title: str) -> None:
    table = Table(title=title)
    names = (
        "",
        "budget",
        "slots",
        "plan GiB",
        "peak GiB",
        "hit rate",
        "tok/s",
        "MB read/token",
        "logits",
        "ended",
    )
    for name in names:
        table.add_column(name, justify="right" if name not in ("", "ended") else "left")
    for o in outcomes:
        table.add_row(
            o.runtime,
            _gib(o.budget),
            str(o.slots or ""),
            f"{o.plan / GIB:.2f}" if o.plan else "",
            f"{o.peak / GIB:.2f}",
            f"{100 * o.hit_rate:.1f} %" if o.slots else "",
            f"{o.decode_rate:.2f}" if o.decode_rate else "",
            f"{o.read / 1e6:.0f}" if o.slots else "",
            o.logits[:8],
            o.ended,
        )
    console.print(table)


if __name__ == "__main__":
    main()
