"""How the code is built: rooms, imports, sizes, names. Prints a table, and one line of JSON last.

    python -m benchmarks.house
    python -m benchmarks.house --picture docs/rooms.svg

"Names defined twice": public classes and functions in two modules, the backends' twins aside.
"Rooms from the command to a product": on the shortest chain of imports to a projection.
"""

from __future__ import annotations

import ast
import json
import keyword
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import combinations, product
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.support.rooms import MODULES, ORDER, PACKAGE, graph, room, upward

TWINS = tuple(f"gptoss_mlx.backends.{name}" for name in ("mlx", "torch", "cpu"))
WITHOUT_ANY = ("gptoss_mlx.backends.protocol", "gptoss_mlx.engine")
IMPORTS = ("from", "import")
WIDTH, ROW, GAP, MARGIN = 900, 50, 10, 16  # pixels


def definitions(path: Path) -> Iterator[str]:
    """The public classes and functions at the top of a module."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name


def names_twice() -> list[str]:
    where: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if not name.startswith(TWINS):
            for defined in definitions(path):
                where.setdefault(defined, set()).add(name)
    commands = {"main"}
    return sorted(name for name, homes in where.items() if len(homes) > 1 and name not in commands)


def uses_of_any() -> list[str]:
    """Where `Any` stands in the seam and in the engine."""
    return sorted(
        f"{name}:{node.lineno}"
        for name, path in MODULES.items()
        if name.startswith(WITHOUT_ANY)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "Any"
    )


def circles() -> int:
    """Groups of modules that import each other, directly or by others."""
    edges = graph()
    reach = {name: _reached(name, edges) for name in edges}
    return len({frozenset(m for m in reach[n] if n in reach[m]) for n in reach if n in reach[n]})


def _reached(name: str, edges: Mapping[str, set[str]]) -> set[str]:
    seen, now = set[str](), [*edges[name]]
    while now:
        if (used := now.pop()) not in seen:
            seen.add(used)
            now += edges[used]
    return seen


def copied_lines(least: int = 6) -> int:
    """Lines of a backend that stand in another one in the same shape, with other names and numbers
    at most: in runs of `least` and more, imports and docstrings aside."""
    backends = [[shapes(MODULES[n]) for n in MODULES if n.startswith(twin)] for twin in TWINS]
    return sum(
        len(_copied(a, b, least))
        for ours, theirs in combinations(backends, 2)
        for a in ours
        for b in theirs
    )


def _copied(a: Sequence[str], b: Sequence[str], least: int) -> set[int]:
    found = set[int]()
    for i, j in product(range(len(a) - least + 1), range(len(b) - least + 1)):
        if a[i : i + least] == b[j : j + least]:
            found.update(range(i, i + least))
    return found


def shapes(path: Path) -> list[str]:
    """A module's statements, each with N for a name, 0 for a number and S for a text.

    The fields of a record are left out: of any two records they have the same shape.
    """
    kinds = {tokenize.NAME: "N", tokenize.NUMBER: "0", tokenize.STRING: "S"}
    lines: list[list[str]] = [[]]
    with path.open(encoding="utf-8") as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.NEWLINE:
                lines.append([])
            elif token.string.strip() and token.type != tokenize.COMMENT:
                named = not keyword.iskeyword(token.string)
                lines[-1].append(kinds.get(token.type, token.string) if named else token.string)
    left_out = (["S"], ["N", ":", "N"])
    return [
        " ".join(line) for line in lines if line not in ([], *left_out) and line[0] not in IMPORTS
    ]


def depth(projection: str = "gptoss_mlx.backends.mlx.linear") -> int:
    """Rooms on the shortest chain of imports from the command to a projection."""
    edges, seen, now = graph(), {"gptoss_mlx.generate"}, [("gptoss_mlx.generate", ("generate",))]
    edges["gptoss_mlx.generate"] |= {"gptoss_mlx.engine.engine"}  # through gptoss_mlx.load
    while now:
        name, passed = now.pop(0)
        if name == projection:
            return len(passed)
        for used in sorted(edges[name] - seen):
            seen.add(used)
            same = room(used) == passed[-1]
            now.append((used, passed if same else (*passed, room(used))))
    raise ValueError(f"nothing leads to {projection}")


def figures() -> dict[str, object]:
    lines = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()
    }
    largest = max(lines, key=lambda name: lines[name])
    return {
        "modules": len(MODULES),
        "lines": sum(lines.values()),
        "modules at the top": len([*PACKAGE.glob("*.py")]),
        "circles": circles(),
        "imports against the order": len(upward()),
        "largest module": f"{largest.removeprefix('gptoss_mlx.')}, {lines[largest]} lines",
        "rooms from the command to a product": depth(),
        "names defined twice": names_twice(),
        "Any in the seam and the engine": len(uses_of_any()),
        "lines copied between the backends": copied_lines(),
    }


def picture() -> str:
    """SVG: a row a room, from the top down, with its modules and the rooms it imports."""
    rooms = [name for name in ORDER if not name.startswith("__")]
    height = MARGIN * 2 + len(rooms) * (ROW + GAP) - GAP
    edges = graph()
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 2 * MARGIN}" height="{height}" '
        'font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, name in enumerate(rooms):
        y = MARGIN + i * (ROW + GAP)
        used = sorted(imported_by(name, edges) & set(rooms), key=rooms.index)
        out += [
            f'<rect x="{MARGIN}" y="{y}" width="{WIDTH}" height="{ROW}" rx="6" fill="#eef2f7" '
            'stroke="#5b6b7f"/>',
            _text(MARGIN + 12, y + 20, name, 'font-size="15" font-weight="bold"'),
            _text(MARGIN + 130, y + 20, _inside(name), 'font-size="12"'),
            _text(
                *(MARGIN + 130, y + 38),
                f"imports {', '.join(used)}" if used else "imports no other room",
                'font-size="11" fill="#5b6b7f"',
            ),
        ]
    return "\n".join([*out, "</svg>", ""])


def imported_by(name: str, edges: Mapping[str, set[str]]) -> set[str]:
    """The other rooms that a room imports."""
    return {room(u) for m, used in edges.items() if room(m) == name for u in used} - {name}


def _inside(name: str) -> str:
    """A room's modules and folders, as one line."""
    names = {m.split(".")[2] for m in MODULES if room(m) == name and m.count(".") > 1}
    folders = {n for n in names if (PACKAGE / name / n).is_dir()}
    text = ", ".join([*(f"{n}/" for n in sorted(folders)), *sorted(names - folders)])
    return (
        text
        or (
            MODULES[f"gptoss_mlx.{name}"].read_text(encoding="utf-8").split('"""')[1].split("\n")[0]
        )
    )


def _text(x: int, y: int, text: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'


@click.command(help=__doc__)
@click.option(
    "--picture", "target", type=click.Path(path_type=Path), help="Write the rooms as SVG."
)
def main(target: Path | None) -> None:
    if target is not None:
        target.write_text(picture(), encoding="utf-8")
        return
    found = figures()
    table = Table(show_header=False)
    for name, value in found.items():
        table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))
    Console(width=110).print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
