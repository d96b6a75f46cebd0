"""What kernels cost by count, without a GPU: ours beside MLX's and OpenAI's.

Each job is run twice in the emulator (tests/support/metal_emulator): once with its accesses traced,
once with its operations counted, as clang leaves them. Products of a few tokens over all their
rows (of lm_head a sixteenth, of the prompt a few experts' tokens and outputs, which all cost the
same); the figures are those of the whole job. OpenAI's are recorded in a file of results. Needs
what the emulator needs: x86-64 Linux, clang-19, lld-19.

    python -m benchmarks.kernels.costs
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import mlx.core as mx
from rich.console import Console
from rich.table import Table

from benchmarks.kernels.jobs import jobs
from benchmarks.kernels.pieces import Job, Piece, Sizes
from tests.support.metal_emulator import Emulator, Launch, available

OPENAI = Path(__file__).parent.parent / "results" / "kernel-costs-openai.json"
DTYPES = {"bfloat16": mx.bfloat16, "float32": mx.float32}
MULTIPLICATION = 512  # multiplications of elements in one of 8x8 matrices


@dataclass(frozen=True)
class Cost:
    """A job's, summed over its launches.

    Bytes are of device memory: `requested` by threads, `accessed` by simdgroups, whose lanes may
    ask for the same bytes together; `elsewhere` in elementwise launches of their own, computed;
    `floor` each needed one once. coalescing: the fewest lines of 128 bytes that could hold what
    each access asks for, over those it touches. Operations are per weight, those of 8x8 matrices
    apart: `multiplied` elements per weight and row of the input.
    """

    job: str
    who: str
    dtype: str
    launches: int
    requested: int
    accessed: int
    elsewhere: int
    floor: int
    coalescing: float
    floating: float
    integer: float
    conversions: float
    operations: float
    multiplied: float
    barriers: float
    threadgroups: float
    threadgroup_bytes: int

    @property
    def over_floor(self) -> float:
        """What crosses between simdgroups and memory, over what must."""
        return (self.accessed + self.elsewhere) / self.floor


def cost(job: Job, name: str) -> Cost:
    """Emulates the job's launches. Raises MetalError for what is wrong with a kernel."""
    traced = [(launched(piece, Emulator(trace=True)), piece.times) for piece in job.pieces]
    counted = [
        (launched(piece, Emulator(check=False, count=True)), piece.times) for piece in job.pieces
    ]
    traffic = [(t, times) for one, times in traced for t in one.traffic.values()]
    operations = [(one.operations, times) for one, times in counted if one.operations]

    def total(pairs: Sequence[tuple[float, float]]) -> float:
        return sum(count * times for count, times in pairs)

    kinds = {
        kind: total([(getattr(o, kind), times) for o, times in operations]) / job.weights
        for kind in ("floating", "integer", "conversions")
    }
    return Cost(
        job.name,
        job.who,
        name,
        launches=len(job.pieces) + job.others,
        requested=round(total([(t.read_bytes + t.written_bytes, n) for t, n in traffic])),
        accessed=round(total([(t.distinct_bytes, n) for t, n in traffic])),
        elsewhere=job.elsewhere,
        floor=job.floor,
        coalescing=total([(t.fewest_lines, n) for t, n in traffic])
        / total([(t.lines, n) for t, n in traffic]),
        **kinds,
        operations=sum(kinds.values()),
        multiplied=total([(one.multiplications * MULTIPLICATION, n) for one, n in traced])
        / job.weights,
        barriers=total([(one.barriers, n) for one, n in traced]),
        threadgroups=total([(one.threadgroups, n) for one, n in traced]),
        threadgroup_bytes=max(one.threadgroup_bytes for one, _ in traced),
    )


def launched(piece: Piece, emulator: Emulator) -> Launch:
    """The piece's one launch."""
    piece.run(emulator)
    (launch,) = emulator.launches
    return launch


def table(costs: Sequence[Cost]) -> Table:
    """A row a job and implementation."""
    shown = Table()
    for heading in (
        *("job", "by", "dtype", "launches", "floor MB", "requested", "accessed", "elsewhere"),
        *("/ floor", "coalescing", "float", "int", "convert", "per weight", "matrix"),
        *("barriers", "groups", "group bytes"),
    ):
        shown.add_column(heading)
    for c in costs:
        shown.add_row(
            *(c.job, c.who, c.dtype, str(c.launches), f"{c.floor / 1e6:.2f}"),
            *(f"{x / c.floor:.4f}" for x in (c.requested, c.accessed, c.elsewhere)),
            *(f"{c.over_floor:.4f}", f"{c.coalescing:.1%}"),
            *(f"{x:.3f}" for x in (c.floating, c.integer, c.conversions, c.operations)),
            *(f"{c.multiplied:.1f}", f"{c.barriers:.0f}", f"{c.threadgroups:.0f}"),
            str(c.threadgroup_bytes),
        )
    return shown


def recorded(path: Path = OPENAI) -> list[Cost]:
    """OpenAI's."""
    return [Cost(**row) for row in json.loads(path.read_text())["costs"]]


@click.command(help=__doc__)
@click.option("--only", default="", help="Jobs whose name begins so.")
@click.option("--dtype", type=click.Choice(sorted(DTYPES)), multiple=True, default=["bfloat16"])
def main(only: str, dtype: Sequence[str]) -> None:
    if reason := available():
        raise click.ClickException(reason)
    costs = []
    for name in dtype:
        for job in jobs(Sizes(), DTYPES[name]):
            if job.name.startswith(only):
                costs.append(cost(job, name))
                print(json.dumps(asdict(costs[-1])), file=sys.stderr, flush=True)
    costs += [c for c in recorded() if c.job.startswith(only)]
    costs.sort(key=lambda c: c.job)
    Console(width=240).print(table(costs))
    print(json.dumps({"mlx": mx.__version__, "costs": [asdict(c) for c in costs]}))


if __name__ == "__main__":
    main()
