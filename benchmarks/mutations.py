"""Whether the tests notice a mistake: small changes of the product, each of which one must catch.

    python -m benchmarks.mutations --seed 1 --count 20

A change is chosen at random: a comparison or a sum the other way round, a number one larger, an
`and` for an `or`, a condition negated. It is made in a copy of the checkout, where the tests of the
module's room are run until one fails. Prints a table, and one line of JSON last.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
SECONDS = 900  # for the tests of one room
SWAPPED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.FloorDiv: "*",
    ast.And: "or", ast.Or: "and",
}  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """Text at `start` to `end` of a module's source, and what stands there instead."""

    path: Path
    line: int
    start: int
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.before} -> {self.after}"


def mutations(path: Path) -> Iterator[Mutation]:
    """Every change of a module."""
    source = path.read_text(encoding="utf-8")
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    data = source.encode()

    def place(node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            starts[node.lineno - 1] + node.col_offset,
            starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def made(node: ast.expr, start: int, end: int, after: str) -> Mutation:
        return Mutation(path, node.lineno, start, end, data[start:end].decode(), after)

    for node in _code(ast.parse(source)):
        pairs: list[tuple[ast.expr, ast.expr, ast.AST]] = []
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            pairs = [(node.left, node.comparators[0], node.ops[0])]
        elif isinstance(node, ast.BinOp):
            pairs = [(node.left, node.right, node.op)]
        elif isinstance(node, ast.BoolOp):
            pairs = [(node.values[0], node.values[1], node.op)]
        for left, right, operator in pairs:
            if type(operator) in SWAPPED:
                start, end = place(left)[1], place(right)[0]
                if set(data[start:end].decode()) <= set(" <>=!+-*/isnotandr"):
                    yield made(left, start, end, f" {SWAPPED[type(operator)]} ")
        if isinstance(node, ast.Constant) and type(node.value) is int:
            yield made(node, *place(node), str(node.value + 1))
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            start, end = place(node.test)
            yield made(node.test, start, end, f"not ({data[start:end].decode()})")


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that are computed: no annotations, no asserts, no texts of errors."""
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _code(child)


def caught(mutation: Mutation, root: Path) -> bool:
    """Whether a test of the module's room fails with it in the copy at `root`."""
    path = root / mutation.path.relative_to(ROOT)
    source = path.read_bytes()
    changed = source[: mutation.start] + mutation.after.encode() + source[mutation.end :]
    path.write_bytes(changed)
    try:
        for tests in _tests_of(path, root):
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
            workers = ["-n", "auto", "--dist", "worksteal"]
            environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
            try:
                done = subprocess.run(
                    [*command, *workers, *tests],
                    cwd=root,
                    env=environment,
                    capture_output=True,
                    timeout=SECONDS,
                )
            except subprocess.TimeoutExpired:
                return True  # it goes on for ever: a limit of time catches that
            if done.returncode:
                return True
        return False
    finally:
        path.write_bytes(source)


def _tests_of(path: Path, root: Path) -> Iterator[list[str]]:
    """Test files that name the module, then the room's others, then the engine's."""
    parts = path.relative_to(root).with_suffix("").parts
    room = root / "tests" / (parts[1] if len(parts) > 2 else "cli")
    inner = room / parts[2] if len(parts) > 3 and (room / parts[2]).is_dir() else room
    files = sorted(inner.rglob("test_*.py"))
    naming = [f for f in files if parts[-1] in f.read_text(encoding="utf-8")]
    others = [f for f in sorted(room.rglob("test_*.py")) if f not in naming]
    rest = sorted((root / "tests" / "engine").glob("test_*.py")) if room.name == "backends" else []
    for group in (naming, others, rest):
        if group:
            yield [str(f.relative_to(root)) for f in group]


@click.command(help=__doc__)
@click.option("--seed", default=1)
@click.option("--count", default=20)
@click.option("--list", "listed", is_flag=True, help="Show the changes, make none.")
def main(seed: int, count: int, listed: bool) -> None:
    modules = sorted((ROOT / "gptoss_mlx").rglob("*.py"))
    chosen = Random(seed).sample([m for path in modules for m in mutations(path)], count)
    if listed:
        print("\n".join(map(str, chosen)))
        return
    table = Table("change", "seconds", "")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, root, ignore=ignored)
        for mutation in chosen:
            begun = time.perf_counter()
            is_caught = caught(mutation, root)
            seconds = time.perf_counter() - begun
            print(
                f"{mutation}: {'caught' if is_caught else 'SURVIVED'}", file=sys.stderr, flush=True
            )
            table.add_row(str(mutation), f"{seconds:.0f}", "caught" if is_caught else "survived")
            found.append({"change": str(mutation), "caught": is_caught, "seconds": seconds})
    Console(width=140).print(table)
    survivors = [one["change"] for one in found if not one["caught"]]
    print(json.dumps({"seed": seed, "changes": len(found), "survived": survivors}))


if __name__ == "__main__":
    main()
