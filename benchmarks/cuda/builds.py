"""Compiles every Triton kernel for every card it is for, without one, and lists what it takes.

Registers and spilled bytes are what cuobjdump finds in the code for a thread, shared bytes what
Triton asks for a block. Kernels that are launched alike under several names are compiled once.
Fails if a kernel does not compile, spills, or needs more than its card has.

    python -m benchmarks.cuda.builds
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

LISTS = "tests.support.triton_builds"


@dataclass(frozen=True)
class Job:
    """The build numbered `index` of a kernel module's list for a capability.

    lists: the Python module whose BUILDS has the list.
    """

    lists: str
    module: str
    name: str
    capability: int
    index: int


@dataclass(frozen=True)
class Row:
    """A job's figures, as `Compiled` has them, and what is wrong with it."""

    name: str
    capability: int
    registers: int = 0
    shared: int = 0
    spilled: int = 0
    cubin: int = 0
    seconds: float = 0.0
    problems: tuple[str, ...] = ()


def jobs(lists: str, capabilities: Sequence[int], few: bool = False) -> Iterator[Job]:
    """Every build that differs from those before it.

    few: of those that differ in the card only, one of each kernel is enough.
    """
    seen: set[str] = set()
    for module, builds in importlib.import_module(lists).BUILDS.items():
        for capability in capabilities:
            for index, build in enumerate(builds(capability)):
                kernel = f"{module} {build.kernel.__name__}"
                key, card = f"{kernel} {_arguments(build)}", f"{capability} {kernel}"
                if f"{capability} {key}" in seen or (few and {key, card} <= seen):
                    continue
                seen |= {key, card, f"{capability} {key}"}
                yield Job(lists, module, build.name, capability, index)


def _arguments(build: Any) -> str:
    parts = (build.types, build.constants, build.options)
    return f"{[sorted(part.items()) for part in parts]} {sorted(build.aligned)}"


def compiled(job: Job) -> Row:
    """Runs a job; what fails is a row too."""
    from gptoss_mlx.errors import KernelError
    from tests.support.compiled import compile

    builds = importlib.import_module(job.lists).BUILDS[job.module]
    build = list(builds(job.capability))[job.index]
    try:
        made = compile(build, job.capability)
    except KernelError as error:
        return Row(job.name, job.capability, problems=(str(error),))
    return Row(
        job.name,
        job.capability,
        made.registers,
        made.shared,
        made.spilled,
        len(made.cubin),
        round(made.seconds, 3),
        tuple(made.problems()),
    )


def run(todo: Sequence[Job], workers: int) -> list[Row]:
    """The jobs' rows in their order, from processes of their own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures: dict[Future[Row], Job] = {pool.submit(compiled, job): job for job in todo}
        console = Console(stderr=True)
        for _ in track(
            as_completed(futures),
            total=len(futures),
            description="compiling",
            console=console,
            disable=not console.is_terminal,
        ):
            pass
    return [_row(future, job) for future, job in futures.items()]


def _row(future: Future[Row], job: Job) -> Row:
    """The row of a finished job, also where the compiler took its process along."""
    if error := future.exception():
        line = " ".join(str(error).split()) or type(error).__name__
        return Row(job.name, job.capability, problems=(line,))
    return future.result()


def table(rows: Sequence[Row]) -> Table:
    """A row a kernel and capability; of those that failed to compile the figures are zero."""
    shown = Table()
    for heading in ("kernel", "card", "registers", "shared", "spilled", "cubin", "seconds"):
        shown.add_column(heading, justify="left" if heading == "kernel" else "right")
    for row in rows:
        figures = (row.registers, row.shared, row.spilled, row.cubin, f"{row.seconds:.2f}")
        shown.add_row(row.name, dotted(row.capability), *map(str, figures))
    return shown


def dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


@click.command(help=__doc__)
@click.option("--capability", type=float, multiple=True, help="Of these cards only, such as 9.0.")
@click.option("--lists", default=LISTS, show_default=True, help="A module that has BUILDS.")
@click.option("--few", is_flag=True, help="Of builds that differ in the card only, one a kernel.")
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count(), show_default=True)
def main(capability: Sequence[float], lists: str, few: bool, workers: int) -> None:
    os.environ.pop("TRITON_INTERPRET", None)  # before anything imports triton, also in workers
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        import triton

        from tests.support.compiled import CAPABILITIES

        wanted = [round(10 * one) for one in capability] or CAPABILITIES
        rows = run(list(jobs(lists, wanted, few)), workers)
    Console(width=110).print(table(rows))
    failed = [row for row in rows if row.problems]
    for row in failed:
        print(f"{row.name}, {dotted(row.capability)}: {'; '.join(row.problems)}")
    if not rows:
        print(f"{lists} has no kernels")
    print(json.dumps({"triton": triton.__version__, "builds": [asdict(row) for row in rows]}))
    sys.exit(1 if failed or not rows else 0)


if __name__ == "__main__":
    main()
