"""The command `gptoss-mlx doctor`: what this machine has for a model, one row a fact.

Each fact is determined on its own: one that cannot be is a row that says why, and the others are
not affected. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click

from gptoss_mlx import __version__
from gptoss_mlx.backends.backend import Backend, choose_backend, machine_of
from gptoss_mlx.cli.exits import Command
from gptoss_mlx.cli.options import (
    BYTES,
    CACHE,
    CONTEXT_SETTINGS,
    TOKENS,
    backend_options,
    model_option,
)
from gptoss_mlx.cli.plan import config_of, plan_object, plan_table
from gptoss_mlx.cli.terminal import Bar, harmless, show
from gptoss_mlx.errors import DeviceError
from gptoss_mlx.files.disk import read_speed
from gptoss_mlx.files.paths import cache_folder
from gptoss_mlx.models.hub import local_folder
from gptoss_mlx.plan.memory import Plan, make_plan
from gptoss_mlx.settings import Settings
from gptoss_mlx.system import device
from gptoss_mlx.system.units import show_bytes

WRITTEN = 8
"""Tokens that are generated to measure a model."""

Choose = Callable[[], Backend]


@dataclass(frozen=True)
class Fact:
    """One fact. value: for programs, None if it is not known; shown: for people."""

    name: str
    title: str
    value: Any
    shown: str


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS, epilog=CACHE)
@model_option('A folder, a Hugging Face id, or "tiny".')
@backend_options
@click.option("--memory", type=BYTES, help="Bytes to plan with, such as 10GiB.")
@click.option("--context", type=TOKENS, help="Tokens to plan for, such as 32k.")
@click.option(
    "--measure", is_flag=True, help="Also run the model, and compare what it took with the plan."
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(
    model: str,
    backend: str | None,
    device: str | None,
    memory: int | None,
    context: int | None,
    measure: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Show the chip, cards, memory and limits, the disk, versions, and the plan for a model."""
    asked = {"backend": backend, "device": device, "memory": memory, "context": context}
    # First, because examining the other backend loads it, which a run of the model does not.
    measured = run_model(model, asked) if measure else None
    choose = cache(lambda: choose_backend(backend, device))
    facts = list(examine(model, choose))
    plan, problem = _planned(model, memory, context, choose)
    if as_json:
        value = {fact.name: fact.value for fact in facts}
        value |= {"plan": plan and plan_object(plan), "no_plan_because": problem}
        value |= {} if measured is None else {"measured": asdict(measured)}
        click.echo(json.dumps(value))
        return
    _print(facts, plan, problem, model)
    if measured is not None:
        click.echo("\n".join(measured.lines))


@dataclass(frozen=True)
class Measured:
    """A measured run: tokens read and written, peak bytes, and lines that compare them with the
    plan."""

    read: int
    written: int
    device_bytes: int
    process_bytes: int
    lines: tuple[str, ...]


def run_model(model: str, asked: Mapping[str, Any]) -> Measured:
    """Open a model, have it read two chunks and write some tokens, and see what that took."""
    import gptoss_mlx
    from gptoss_mlx.cli.report import compare

    shown = sys.stderr is not None and sys.stderr.isatty()
    with Bar(f"Measuring {model}", "bytes", shown=shown, after=1.0) as bar:
        given = {name: value for name, value in asked.items() if value is not None}
        engine = gptoss_mlx.load(model, progress=bar.update, **given)
        plan = engine.plan
        assert plan is not None  # what load opens has one
        read = min(2 * plan.chunk + 1, plan.context - WRITTEN)
        engine.generate([0] * read, raw=True, max_tokens=WRITTEN, temperature=1.0, seed=1)
    stats = engine.stats()
    lines = [line for line in compare(plan, stats) if line is not None]
    lines.append(f"after {read} tokens read and up to {WRITTEN} written, of {plan.context} planned")
    peaks = int(stats["peak_bytes"]), device.peak_bytes()
    return Measured(read, WRITTEN, *peaks, tuple(lines))


def examine(model: str, choose: Choose = choose_backend) -> Iterator[Fact]:
    """Every fact in turn; the disk's speed is that of the model's folder.

    choose: gives the backend, or raises why there is none.
    """
    chosen = _or_nothing(choose)
    folder = _or_nothing(lambda: local_folder(model))
    yield _fact("chip", "chip", lambda: device.device_info()["device_name"])
    yield _fact("cores", "cores", os.cpu_count)
    yield _fact("computes_on", "computes on", lambda: _place(device.device_info()))
    yield _fact("backend", "backend", lambda: choose().shown)
    yield _fact("memory", "memory", lambda: _memory(choose()), show_bytes)
    yield _fact("limit", _limit_title(chosen), lambda: machine_of(choose()).limit, show_bytes)
    yield _fact("free", "free memory", device.free_bytes, show_bytes)
    yield _fact("system", "system", _system)
    yield _fact("python", "Python", platform.python_version)
    yield _fact("mlx", "MLX", lambda: _version("mlx"))
    yield _fact("torch", "PyTorch", lambda: _version("torch"))
    yield _fact("torch_cuda", "PyTorch's CUDA", _built_for)
    yield _fact("triton", "Triton", lambda: _version("triton"))
    yield _fact("cards", "NVIDIA cards", _cards, _each_card)
    yield _fact("gptoss_mlx", "gptoss-mlx", lambda: __version__)
    yield _fact("kernels", "kernels", lambda: _kernels(chosen), _grouped)
    yield _fact("cache", "cache folder", _cache)
    yield _fact("folder", "model's folder", lambda: _where(model, folder))
    yield _fact("disk_read", "disk reads", lambda: folder and _speed(folder), _per_second)


def _fact(name: str, title: str, find: Callable[[], Any], show: Callable[[Any], str] = str) -> Fact:
    try:
        value = find()
    except Exception as error:  # whatever it is, the other facts are still worth having
        why = " ".join(str(error).split()) or type(error).__name__
        return Fact(name, title, None, f"not known: {why}")
    return Fact(name, title, value or None, show(value) if value else "not known")


def _or_nothing(find: Callable[[], Any]) -> Any:
    """What is found, or None on any error: the fact's own row says why."""
    try:
        return find()
    except Exception:
        return None


def _planned(
    model: str, memory: int | None, context: int | None, choose: Choose
) -> tuple[Plan | None, str | None]:
    """The plan, or why there is none."""
    try:
        machine = machine_of(choose())
        return make_plan(config_of(model), machine, Settings(memory=memory, context=context)), None
    except Exception as error:
        return None, " ".join(str(error).split()) or type(error).__name__


def _place(info: Mapping[str, Any]) -> str:
    return "the GPU" if info["gpu"] else "the CPU"


def _limit_title(chosen: Backend | None) -> str:
    return "limit of the GPU" if chosen and chosen.device != "cpu" else "limit for a model"


def _memory(chosen: Backend) -> int | None:
    """Bytes of the machine's memory, not of a card's."""
    on_mlx = chosen.backend == "mlx"
    return (device.this_machine() if on_mlx else device.this_computer()).memory


def _system() -> str:
    release = platform.mac_ver()[0]
    name = f"macOS {release}" if release else f"{platform.system()} {platform.release()}"
    return f"{name}, {platform.machine()}"


def _cache() -> str:
    """The cache folder. Raises ValueError if it cannot be written; nothing is left in it."""
    folder = cache_folder()
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {error.strerror}; set GPTOSS_CACHE to another"
        ) from None
    return str(folder)


def _where(model: str, folder: Path | None) -> str:
    if folder is None:
        raise ValueError(f"{model} is not on this machine")
    return str(folder)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise ValueError("it is not installed") from None


def _built_for() -> str:
    from gptoss_mlx.backends.torch.device import built_for

    return built_for()


def _cards() -> list[dict[str, Any]]:
    """The NVIDIA cards; "problem" is what keeps one from being used, or None."""
    from gptoss_mlx.backends.torch.device import ask_card, check_card, count_cards, is_installed

    if not is_installed():
        raise ValueError("PyTorch is not installed, which would be asked")
    cards: list[dict[str, Any]] = []
    for index in range(count_cards()):
        card = ask_card(index)
        problem: str | None = None
        try:
            check_card(card)
        except DeviceError as error:
            problem = str(error)
        cards.append({**asdict(card), "problem": problem})
    return cards


def _each_card(cards: list[dict[str, Any]]) -> str:
    return "\n".join(map(_one_card, cards))


def _one_card(card: Mapping[str, Any]) -> str:
    major, minor = divmod(card["capability"], 10)
    free, total = show_bytes(card["free"]), show_bytes(card["total"])
    driver = f", driver {card['driver']}" if card["driver"] else ""
    problem = f"; {card['problem']}" if card["problem"] else ""
    return (
        f"cuda:{card['index']} {card['name']}, capability {major}.{minor},"
        f" {free} of {total} free{driver}{problem}"
    )


def _kernels(chosen: Backend | None) -> dict[str, str]:
    if chosen is not None and chosen.backend == "torch":
        from gptoss_mlx.backends.torch.choice import found_on

        return found_on(chosen.device)
    if chosen is not None and chosen.backend == "cpu":
        from gptoss_mlx.backends.cpu.library import OPERATIONS, choose_variant

        return dict.fromkeys(OPERATIONS, choose_variant())
    from gptoss_mlx.backends.mlx.ops.choice import found_here

    return found_here()


def _grouped(kernels: Mapping[str, str]) -> str:
    """Kernels by what runs them, or by why they are not used: "metal: a, b; reference: c"."""
    names: dict[str, list[str]] = {}
    for name, what in kernels.items():
        names.setdefault(what, []).append(name)
    return "; ".join(f"{what}: {', '.join(those)}" for what, those in names.items())


def _speed(folder: Path) -> float:
    """The disk's read speed in bytes a second, from the largest file with weights."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    if not files:
        raise ValueError("there are no weights in the model's folder")
    return read_speed(files[-1])


def _per_second(speed: float) -> str:
    return f"{speed / 1e9:.2f} GB/s"


def _print(facts: list[Fact], plan: Plan | None, problem: str | None, model: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for fact in facts:
        table.add_row(fact.title, Text(harmless(fact.shown)))
    if plan is None:
        show(table)
        click.echo(harmless(f"no plan for {model}: {problem}"))
        return
    show(table, plan_table(plan, f"{model} on this machine"))
    free = _or_nothing(device.free_bytes)
    on_card = plan.gpu and plan.backend == "torch"
    if not on_card and free is not None and free < plan.total:
        click.echo(
            f"only {show_bytes(free)} are free now: other programs would be pushed out;"
            " --memory plans with less"
        )


if __name__ == "__main__":
    main()
