"""GPU kernels launched for a decoded token, and arrays made: ours beside mlx-lm's.

No Mac is needed: a decode step is traced as MLX would queue it on one (step_graph.py), and each of
its operations is counted as MLX's Metal backend launches it (launch_table.py). Random checkpoints
of one structure, the same for both, with two, three and four layers, sliding and full ones in turn,
tell what one more layer of either kind costs and what is outside of layers: the embedding, the last
norm, the head and the greedy choice. Linear layers are bfloat16, as released, or 8 bits, as
converted. Ours is also traced for several sequences that are decoded together.

    python -m benchmarks.kernels.launches
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.kernels.launch_table import UnknownLaunches, check_compiled, count
from benchmarks.kernels.step_graph import Tracer
from gptoss_mlx.errors import GptOssError
from tests.support.checkpoints import Shape, write_checkpoint

SHAPE = Shape(hidden=64, intermediate=64, heads=16, kv_heads=2, vocab=2048)
"""As released but for sizes that change no count; heads of 64 values have MLX's fused attention."""
LAYERS = (2, 3, 4)  # the third is a sliding layer, the fourth a full one
CONTEXT = 200  # tokens before the step: more than the window
GOAL = 8  # launches a layer
NAMES = ("gptoss_mlx", "mlx-lm")
WIDTH = 110  # columns of the table where no terminal says otherwise


@dataclass(frozen=True)
class Step:
    """A step to be traced: of a token, its outputs. kept: arrays of keys and values before it."""

    run: Callable[[mx.array], Sequence[mx.array]]
    kept: int


@dataclass(frozen=True)
class Costs:
    """Launches by operation, of a sliding layer, of a full one, and of what is outside of layers.

    held: copies more, in each, where the step before is still running (`launch_table.Count`).
    arrays: that the host makes for the step, in each.
    """

    sliding: Counter[str]
    full: Counter[str]
    outside: Counter[str]
    held: tuple[int, int, int]
    arrays: tuple[int, int, int]

    @property
    def layer(self) -> float:
        """Launches of a layer, the mean of both kinds."""
        return (self.sliding.total() + self.full.total()) / 2


@click.command()
@click.option("--context", default=CONTEXT, show_default=True, type=click.IntRange(2))
@click.option("--rows", default="4,8", show_default=True, help="Sequences decoded together.")
@click.option("--worker", type=click.Choice(NAMES), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(context: int, rows: str, worker: str | None, folder: Path | None) -> None:
    """Count the launches of a decoded token; one JSON line last."""
    counts = [int(count) for count in rows.split(",")]
    if worker is not None and folder is not None:
        counted = traced(worker, folder, context, counts[0])
        print(json.dumps(vars(counted)))
        return
    try:
        report = _report(context, counts)
    except GptOssError as error:
        raise click.ClickException(str(error)) from None
    print(json.dumps(report))


@dataclass(frozen=True)
class Traced:
    """One step. arrays: that the host makes for it, besides the token."""

    launches: Counter[str]
    held: int
    arrays: int


def traced(name: str, folder: Path, context: int, rows: int = 1) -> Traced:
    """One step, in a process that has not imported the package or mlx-lm yet. rows: of ours.

    Raises UnknownLaunches.
    """
    tracer, token = Tracer(), mx.array([1] * rows, mx.uint32)
    with tracer.open():
        ours = name == "gptoss_mlx"
        new_step = _ours(folder, context, rows) if ours else _mlx_lm(folder, context)
        step = new_step()
        counted = count(tracer.trace(step.run, token))
        before = tracer.constants
        tracer.trace(new_step().run, token)
        shared = _places(tracer.constants) & _places(before)
        arrays = tracer.sources - len(shared) - step.kept
        for compiled in list(tracer.compiled):
            check_compiled(tracer.inside(compiled))
    return Traced(counted.launches, counted.held, arrays)


def _places(arrays: Iterable[mx.array]) -> set[int]:
    """Where arrays lie in memory: what two steps share has been made before both."""
    seen = (a.view(mx.uint16) if a.dtype == mx.bfloat16 else a for a in arrays)
    return {np.asarray(a).ctypes.data for a in seen}


def _ours(folder: Path, context: int, rows: int) -> Callable[[], Step]:
    from gptoss_mlx.backends.mlx.cache import State
    from gptoss_mlx.backends.mlx.model import open_model
    from gptoss_mlx.backends.mlx.ops.choice import Kernels, metal_kernels
    from gptoss_mlx.backends.mlx.ops.decode_attention import decode_attention
    from gptoss_mlx.backends.protocol import Draw
    from gptoss_mlx.models.checkpoint import Checkpoint
    from gptoss_mlx.spec.sampling import Sampling

    checkpoint = Checkpoint.open(folder)
    # The reference in another guise: not what `Kernels.pages` takes for one that needs no pages.
    paged = Kernels(decode_attention=partial(decode_attention))
    plain, model = (
        open_model(checkpoint, dtype="bfloat16", embedding="resident", rows=rows, kernels=kernels)
        for kernels in (paged, metal_kernels())
    )
    sampler = model.sampler(Sampling(temperature=0.0), 0, [])
    before: list[State] = []

    def new_step() -> Step:
        while before:  # they hold what was traced, which cannot be computed
            before.pop().close()
        states = [plain.new_state() for _ in range(rows)]
        before.extend(states)
        for state in states:
            plain.prefill([i % SHAPE.vocab for i in range(context)], state)
        mx.eval(plain.decode([[1]] * rows, states))  # the first step after a prompt may tidy up

        def step(tokens: mx.array) -> Sequence[mx.array]:
            logits = model.decode([tokens[i : i + 1] for i in range(rows)], states)
            draws = [Draw(row, sampler, 0, None) for row in range(rows)]
            chosen = [choice.token for choice in model.choose(logits, draws)]
            return [*chosen, *{id(a): a for state in states for a in state.arrays()}.values()]

        return Step(step, len({id(a) for state in states for a in state.arrays()}))

    return new_step


def _mlx_lm(folder: Path, context: int) -> Callable[[], Step]:
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model = load_model(folder)[0]

    def new_step() -> Step:
        cache = make_prompt_cache(model)

        def held() -> list[mx.array]:
            return [array for layer in cache for array in (layer.keys, layer.values)]

        model(mx.arange(context)[None] % SHAPE.vocab, cache=cache)
        mx.eval(held())
        mx.eval(model(mx.array([[1]]), cache=cache), held())

        def step(token: mx.array) -> Sequence[mx.array]:
            # As mlx_lm.generate.generate_step does with its default sampler.
            logits = model(token[None], cache=cache)[:, -1, :]
            logprobs = logits - mx.logsumexp(logits, keepdims=True)
            return [mx.argmax(logprobs, axis=-1), logprobs.squeeze(0), *held()]

        return Step(step, len(held()))

    return new_step


def _report(context: int, rows: Sequence[int]) -> dict[str, Any]:
    report: dict[str, Any] = {
        "benchmark": "launches",
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "context": context,
        "goal_a_layer": GOAL,
    }
    with TemporaryDirectory() as work:
        for weights in ("bfloat16", "8 bits"):
            found = {name: costs(name, Path(work), weights, context) for name in NAMES}
            _show(found, weights)
            report[weights] = {name: _plain(found[name]) for name in NAMES}
            together = {n: costs(NAMES[0], Path(work), weights, context, n) for n in rows}
            report[weights]["together"] = {n: _shared(c, n) for n, c in together.items()}
    return report


def costs(name: str, work: Path, weights: str, context: int, rows: int = 1) -> Costs:
    """What the layers cost, from the steps of models with LAYERS layers. Raises GptOssError."""
    steps = [_spawn(name, _checkpoint(work, layers, weights), context, rows) for layers in LAYERS]
    two, three, four = (step.launches for step in steps)
    sliding, full = _less(three, two), _less(four, three)
    outside = _less(_less(two, sliding), full)
    held, arrays = _kinds([s.held for s in steps]), _kinds([s.arrays for s in steps])
    return Costs(sliding, full, outside, held, arrays)


def _kinds(steps: Sequence[int]) -> tuple[int, int, int]:
    """Of a sliding layer, of a full one and outside, from steps of two, three and four layers."""
    two, three, four = steps
    return three - two, four - three, two - (four - two)


def _less(more: Counter[str], fewer: Counter[str]) -> Counter[str]:
    left = Counter({name: more[name] - fewer[name] for name in more if more[name] != fewer[name]})
    if any(n < 0 for n in left.values()) or fewer.keys() - more.keys():
        raise UnknownLaunches("a step with one layer more does not launch more of everything")
    return left


def _spawn(name: str, folder: Path, context: int, rows: int = 1) -> Traced:
    command = [sys.executable, "-m", "benchmarks.kernels.launches", "--worker", name]
    command += ["--folder", str(folder), "--context", str(context), "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise GptOssError(f"{name}: {last[0]}")
    value = json.loads(done.stdout.splitlines()[-1])
    return Traced(Counter(value["launches"]), value["held"], value["arrays"])


def _checkpoint(work: Path, layers: int, weights: str) -> Path:
    released, converted = work / f"{layers}", work / f"{layers}-8-bits"
    if not released.exists():
        write_checkpoint(released, replace(SHAPE, layers=layers))
    if weights == "bfloat16":
        return released
    if not converted.exists():
        _convert(released, converted)
    return converted


def _convert(released: Path, folder: Path) -> None:
    from convert import destination
    from convert.plan import to_mlx
    from convert.sources import open_source
    from gptoss_mlx.spec.recipe import RECIPES

    source = open_source(released)
    destination.write(source, to_mlx(source, RECIPES["8"]), folder)


def _plain(costs: Costs) -> dict[str, Any]:
    return {
        "a_layer": costs.layer,
        "outside_layers": costs.outside.total(),
        "token_20b": 12 * (costs.sliding.total() + costs.full.total()) + costs.outside.total(),
        "arrays_20b": 12 * sum(costs.arrays[:2]) + costs.arrays[2],
        "copies_more_if_the_step_before_runs": dict(
            zip(("sliding", "full", "outside"), costs.held, strict=True)
        ),
        **{
            name: dict(sorted(getattr(costs, name).items()))
            for name in ("sliding", "full", "outside")
        },
    }


def _shared(costs: Costs, rows: int) -> dict[str, Any]:
    """Of a step of several sequences: launches a layer, and for each token of the 20b."""
    plain = _plain(costs)
    return {
        "a_layer": plain["a_layer"],
        "outside_layers": plain["outside_layers"],
        "token_20b": round(plain["token_20b"] / rows, 1),
    }


def _show(found: dict[str, Costs], weights: str) -> None:
    table = Table(title=f"launches of a decoded token, {weights}")
    table.add_column("operation")
    kinds = ("sliding", "full", "outside")
    for kind in kinds:
        for name in NAMES:
            table.add_column(f"{kind}\n{name}", justify="right")
    columns = [getattr(found[name], kind) for kind in kinds for name in NAMES]
    for operation in sorted(set().union(*columns)):
        table.add_row(operation, *(str(column[operation] or "") for column in columns))
    table.add_section()
    table.add_row("all", *(str(column.total()) for column in columns))
    held = [str(found[name].held[i]) for i in range(len(kinds)) for name in NAMES]
    table.add_row("more, if the step before runs", *held)
    made = [str(found[name].arrays[i]) for i in range(len(kinds)) for name in NAMES]
    table.add_row("arrays made by the host", *made)
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)


if __name__ == "__main__":
    main()
