"""Machine instructions a weight in the main loops of the experts' kernels, without a card.

    python -m benchmarks.cuda.sass --capability 90

Compiles the builds for a compute capability and disassembles them. A loop's instructions a weight
are those of all lanes of all warps; a multiprocessor issues 128 a cycle, and an H200's memory
brings it 33 weights a cycle, so that above 3.9 a weight memory waits for the arithmetic.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import triton

from gptoss_mlx.backends.torch.triton.capability import INTERPRETED
from tests.support import triton_builds
from tests.support.compiled import CAPABILITIES, Build, compile

LANES = 32
KINDS = 12  # of instructions named in a row of the table


@dataclass(frozen=True)
class Figures:
    """Of one build: registers a lane, bytes, and the loop with the most instructions."""

    name: str
    registers: int
    spilled: int
    shared: int
    loop: int
    a_weight: float
    kinds: dict[str, int]


def figures(build: Build, capability: int) -> Figures:
    kernel = compile(build, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kinds = max((Counter(loop) for loop in loops(text)), key=Counter.total, default=Counter())
    weights = build.constants["BM"] * build.constants["BK"]
    return Figures(
        build.name,
        kernel.registers,
        kernel.spilled,
        kernel.shared,
        kinds.total(),
        round(kinds.total() * LANES * build.options["num_warps"] / weights, 2),
        dict(kinds.most_common(KINDS)),
    )


def loops(text: str) -> Iterator[list[str]]:
    """The operations of each loop of a disassembly, from a label to a jump back to it."""
    labels: dict[str, int] = {}
    operations: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(operations)
        elif code := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)(.*?);", line):
            operations.append(code[1].split(".")[0])
            jump = re.search(r"`\((\.L_x_\d+)\)", code[2])
            if (
                code[1].startswith("BRA")
                and jump
                and labels.get(jump[1], 1 << 30) < len(operations)
            ):
                yield operations[labels[jump[1]] :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--capability", type=int, default=90, choices=CAPABILITIES)
    parser.add_argument("--only", default="", help="part of a build's name")
    arguments = parser.parse_args()
    if INTERPRETED:
        parser.error("unset TRITON_INTERPRET: interpreted kernels have no machine instructions")
    rows = []
    titles = ("registers", "spilled", "shared", "loop", "a weight")
    print(f"{'kernel':<22}" + "".join(f"{title:>10}" for title in titles))
    for build in triton_builds.moe(arguments.capability):
        if arguments.only in build.name:
            row = figures(build, arguments.capability)
            rows.append(asdict(row))
            columns = (row.registers, row.spilled, row.shared, row.loop, row.a_weight)
            kinds = " ".join(f"{kind} {n}" for kind, n in row.kinds.items())
            print(f"{row.name:<22}" + "".join(f"{n:>10}" for n in columns) + "  " + kinds)
    print(json.dumps({"capability": arguments.capability, "kernels": rows}))


if __name__ == "__main__":
    main()
