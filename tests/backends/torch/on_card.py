"""What a card must show, as checks that run outside of Triton's interpreter.

`python -m tests.backends.torch.on_card DEVICE FOLDER` runs every check and prints a line of JSON
for each: its name, and what went wrong or null. FOLDER is a small random checkpoint.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import gptoss_mlx
from gptoss_mlx.backends.torch.agreement import relative
from gptoss_mlx.backends.torch.choice import MODULES, checked, is_reference
from gptoss_mlx.backends.torch.current import launching_on
from gptoss_mlx.backends.torch.graph import Graphs
from gptoss_mlx.backends.torch.model import Transformer, open_model
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event, FinishEvent, PrefillEvent, TokenEvent
from gptoss_mlx.models.checkpoint import Checkpoint

DTYPES = ("bfloat16", "float32")
IDS = [(7 * i) % 8192 for i in range(300)]
QUESTION = "What is 27 + 58?"
ANSWER = "27 + 58 = 85"
TOKENS = 24

Check = Callable[[str, Path], None]


def kernel(name: str, dtype: str, device: str, folder: Path) -> None:
    """A kernel gives what its reference gives."""
    with launching_on(torch.device(device)):
        checked(name, torch.device(device), getattr(torch, dtype))


def nothing_is_left_out(device: str, folder: Path) -> None:
    """The model computes with every kernel, and its steps are captured."""
    model = opened(device, folder, "bfloat16")
    same({}, dict(model.kernels.rejected))
    same([], [name for name in MODULES if is_reference(model.kernels, name)])
    same(True, isinstance(model._step, Graphs))


def logits(dtype: str, device: str, folder: Path) -> None:
    """Prompts, past the window and in pieces, and the token behind them, as the CPU has them."""
    expected = opened("cpu", folder, "float32")
    truth = torch.from_numpy(expected.evaluate(IDS, expected.new_state()))
    model = opened(device, folder, dtype)
    near = {"float32": 1e-3, "bfloat16": 0.1}[dtype]
    found = torch.from_numpy(model.evaluate(IDS, model.new_state()))
    within(near, relative(found, truth))
    state = model.new_state()
    for piece in (IDS[:150], IDS[150:151], IDS[151:290]):
        model.prefill(piece, state)
    for i in range(290, 300):
        within(near, relative(model.decode([[IDS[i]]], [state])[0].cpu(), truth[i]))


def graphs(count: int, device: str, folder: Path) -> None:
    """A captured step gives the eager step's logits, for several sequences at their own places."""
    model = opened(device, folder, "bfloat16")
    captured, found = model._step, []
    for step in (model._one_each, captured):
        model._step = step
        states = [model.new_state() for _ in range(count)]
        for i, state in enumerate(states):
            model.prefill(IDS[: 5 + 40 * i], state)
        rows = []
        for i in range(8):
            rows.append(model.decode([[IDS[i + j]] for j in range(count)], states).clone())
        found.append(torch.stack(rows))
        for state in states:
            state.close()
    model._step = captured
    # A bucket larger than the count may be computed in other tiles, and so rounded otherwise.
    full = count in (1, 2, 4, 8)
    within(0.0 if full else 1e-2, relative(found[1], found[0]))


def streamed(device: str, folder: Path) -> None:
    """Experts that are brought when they are chosen give what resident ones give."""
    found = []
    for slots in (None, 3):
        model = opened(device, folder, "float32", slots=slots)
        state = model.new_state()
        model.prefill(IDS[:100], state)
        found.append(torch.stack([model.decode([[id]], [state])[0] for id in IDS[100:120]]))
    within(1e-5, relative(found[1], found[0]))


def answer(dtype: str, device: str, folder: Path) -> None:
    """The tiny model adds; in float32 it gives the CPU's tokens one by one."""
    events = list(tiny(device, dtype).stream(QUESTION, temperature=0.0, max_tokens=200))
    said = "".join(event.text for event in shown(events))
    same(ANSWER, said)
    if dtype == "float32":
        plain = tiny("cpu", dtype).stream(QUESTION, temperature=0.0, max_tokens=200)
        same(ids_of(list(plain)), ids_of(events))


def drawn(device: str, folder: Path) -> None:
    """A seed gives the same tokens every time, and another seed others."""
    options = {"raw": True, "temperature": 1.5, "max_tokens": TOKENS}
    first, again, other = (
        ids_of(list(tiny(device, "bfloat16").stream(IDS[1:30], seed=seed, **options)))
        for seed in (5, 5, 6)
    )
    same(first, again)
    same(True, first != other)


def cancelled(device: str, folder: Path) -> None:
    """A stream ends where it is cancelled; the next one goes on from what it had read."""
    engine = fresh(device)
    left = iter([False] * 6)
    events = list(greedy(engine, IDS[1:200], cancel=lambda: next(left, True)))
    same("cancelled", events[-1].reason)
    again = list(greedy(engine, IDS[1:200]))
    same(True, reused(again) > 0)
    same(ids_of(list(greedy(fresh(device), IDS[1:200]))), ids_of(again))


def prefix(device: str, folder: Path) -> None:
    """A prompt that begins as the last one did is read from where they part."""
    engine = fresh(device)
    first = list(greedy(engine, IDS[1:200]))
    longer = [*IDS[1:200], *ids_of(first), *IDS[3:20]]
    events = list(greedy(engine, longer))
    same(True, reused(events) >= 198)
    same(ids_of(list(greedy(fresh(device), longer))), ids_of(events))


def together(device: str, folder: Path) -> None:
    """Several streams side by side give what each gives alone."""
    engine = fresh(device)
    prompts = [IDS[i : i + 20 + 30 * i] for i in range(1, 4)]
    found: list[list[Event]] = [[] for _ in prompts]
    options = {"raw": True, "temperature": 0.0, "max_tokens": TOKENS}
    for i, event in engine.stream_many(prompts, **options):
        found[i].append(event)
    for prompt, events in zip(prompts, found, strict=True):
        same(ids_of(list(greedy(engine, prompt))), ids_of(events))


def benchmark(device: str, folder: Path) -> None:
    """benchmarks.cuda measures everything on this device, at tiny sizes."""
    from click.testing import CliRunner

    from benchmarks.cuda.__main__ import main

    result = CliRunner().invoke(main, ["--device", device, "--model", "tiny"])
    sections = json.loads(result.stdout.splitlines()[-1])["sections"]
    rows = [row for section in sections.values() for row in section["rows"]]
    same([], [row for row in rows if "error" in row])
    same([], [row for row in rows if row.get("agrees") is False])


CHECKS: Mapping[str, Check] = {
    **{f"{name} {dtype}": partial(kernel, name, dtype) for name in MODULES for dtype in DTYPES},
    "nothing is left out": nothing_is_left_out,
    **{f"logits {dtype}": partial(logits, dtype) for dtype in DTYPES},
    **{f"graphs of {count}": partial(graphs, count) for count in (1, 3, 4)},
    "streamed experts": streamed,
    **{f"answer {dtype}": partial(answer, dtype) for dtype in DTYPES},
    "drawn": drawn,
    "cancelled": cancelled,
    "prefix": prefix,
    "together": together,
    "benchmark": benchmark,
}


def opened(device: str, folder: Path, dtype: str, **options: Any) -> Transformer:
    with Checkpoint.open(folder) as checkpoint:
        return open_model(
            checkpoint, device=device, dtype=dtype, rows=8, context=512, chunk=128, **options
        )


@cache
def tiny(device: str, dtype: str) -> Engine:
    return gptoss_mlx.load(
        "tiny", backend="torch", device=device, dtype=dtype, context=1024, parallel=4
    )


def fresh(device: str) -> Engine:
    """The tiny model's engine in float32, which has read nothing."""
    one = tiny(device, "float32")
    return Engine(one.model, one.tokenizer, one.config, one.context, {})


def greedy(engine: Engine, prompt: list[int], **options: Any) -> Iterator[Event]:
    return engine.stream(prompt, raw=True, temperature=0.0, max_tokens=TOKENS, **options)


def ids_of(events: list[Event]) -> list[int]:
    return [e.id for e in events if isinstance(e, TokenEvent) and e.id is not None]


def shown(events: list[Event]) -> Iterator[TokenEvent]:
    """What is meant for a person."""
    for event in events:
        if isinstance(event, TokenEvent) and (event.channel, event.kind) == ("final", "content"):
            yield event


def reused(events: list[Event]) -> int:
    assert isinstance(events[-1], FinishEvent)
    return max(event.reused for event in events if isinstance(event, PrefillEvent))


def same(expected: Any, found: Any) -> None:
    if expected != found:
        raise AssertionError(f"{found!r} instead of {expected!r}")


def within(limit: float, found: float) -> None:
    if not found <= limit:
        raise AssertionError(f"off by {found:.1e}, more than {limit:.0e}")


def run(device: str, folder: Path, names: list[str]) -> None:
    """One line of JSON a check: {"check": its name, "error": null or a text}."""
    for name in names or CHECKS:
        error = None
        try:
            CHECKS[name](device, folder)
        except Exception as problem:
            where = "".join(traceback.format_tb(problem.__traceback__)[-2:])
            error = f"{type(problem).__name__}: {problem}\n{where}"
        print(json.dumps({"check": name, "error": error}), flush=True)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
