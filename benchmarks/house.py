"""How the code is built: rooms, imports, sizes, names. Prints a table, and one line of JSON last.

    python -m benchmarks.house
    python -m benchmarks.house --picture docs/rooms.svg

"Names defined twice": public classes and functions in two modules, the backends' twins aside.
"Rooms from the command to a product": on the shortest chain of imports to a projection.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from html import escape
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.support.rooms import MODULES, ORDER, PACKAGE, graph, room, upward

TWINS = ("gptoss_mlx.backends.mlx", "gptoss_mlx.backends.torch")
WITHOUT_ANY = ("gptoss_mlx.backends.protocol", "gptoss_mlx.engine")
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
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError:
        return 1
    return 0


def depth(product: str = "gptoss_mlx.backends.mlx.linear") -> int:
    """Rooms on the shortest chain of imports from the command to a projection."""
    edges, seen, now = graph(), {"gptoss_mlx.generate"}, [("gptoss_mlx.generate", ("generate",))]
    edges["gptoss_mlx.generate"] |= {"gptoss_mlx.engine.engine"}  # through gptoss_mlx.load
    while now:
        name, passed = now.pop(0)
        if name == product:
            return len(passed)
        for used in sorted(edges[name] - seen):
            seen.add(used)
            same = room(used) == passed[-1]
            now.append((used, passed if same else (*passed, room(used))))
    raise ValueError(f"nothing leads to {product}")


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
