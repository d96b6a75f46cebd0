"""Machine instructions a weight in the main loops of the experts' kernels, without a card.

    python -m benchmarks.cuda_sass --capability 90

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
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gptoss_mlx.cuda.kernels import moe
from gptoss_mlx.cuda.kernels.build import CAPABILITIES, INTERPRETED, Build

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LANES = 32
KINDS = 12  # of instructions named in a row of the table


@dataclass(frozen=True)
class Figures:
    """Of one build: registers a lane, bytes, and the loop with the most instructions."""

    name: str
    registers: int
    stack: int
    shared: int
    loop: int
    a_weight: float
    kinds: dict[str, int]


def compiled(build: Build, capability: int) -> Any:
    """The kernel in all its forms: `.asm`, `.metadata`."""
    names = list(build.types)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned}
    source = ASTSource(
        build.kernel,
        {name: build.types[name] for name in build.kernel.arg_names},
        dict(build.constants),
        {(build.kernel.arg_names.index(names[i]),): v for (i,), v in attributes.items()},
    )
    options = {"enable_fp_fusion": True, **build.options}
    return triton.compile(source, target=GPUTarget("cuda", capability, LANES), options=options)


def figures(build: Build, capability: int) -> Figures:
    kernel = compiled(build, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        text = _output("nvdisasm", "-c", file.name)
    kinds = max((Counter(loop) for loop in loops(text)), key=Counter.total, default=Counter())
    weights = build.constants["BM"] * build.constants["BK"]
    return Figures(
        build.name,
        int(re.search(r"REG:(\d+)", usage)[1]),
        int(re.search(r"STACK:(\d+)", usage)[1]),
        kernel.metadata.shared,
        kinds.total(),
        round(kinds.total() * LANES * build.options["num_warps"] / weights, 2),
        dict(kinds.most_common(KINDS)),
    )


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / tool, *arguments], check=True, capture_output=True, text=True
    ).stdout


def loops(text: str) -> Iterator[list[str]]:
    """The innermost and outer loops of a disassembly: the operations from a label to a jump back."""
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
    print("kernel              registers  stack   shared  loop  a weight")
    for build in moe.builds(arguments.capability):
        if arguments.only in build.name:
            row = figures(build, arguments.capability)
            rows.append(asdict(row))
            print(
                f"{row.name:<18} {row.registers:>10} {row.stack:>6} {row.shared:>8} {row.loop:>5} "
                f"{row.a_weight:>9}  " + " ".join(f"{k} {n}" for k, n in row.kinds.items()),
                flush=True,
            )
    print(json.dumps({"capability": arguments.capability, "kernels": rows}))


if __name__ == "__main__":
    main()
