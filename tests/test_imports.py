"""The order of the modules, read from their source, and what importing the package loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import gptoss_mlx

PACKAGE = Path(gptoss_mlx.__file__).parent

# From the top down; a module imports its own row and rows below it, without circles.
ROWS = [
    {"__main__", "cli"},
    {"generate", "report", "plan", "doctor"},
    {"question", "exits", "terminal", "options"},
    {"__init__"},
    {
        "engine",
        "arguments",
        "backend",
        "stream",
        "session",
        "writer",
        "request",
        "result",
        "clock",
        "loop",
    },
    {"tokenizer", "sampler", "events"},
    {"model", "cuda"},
    {"rehearsal", "blocks"},
    {"streaming"},
    {"experts", "embedding", "cache"},
    {"weights", "rope"},
    {"linear"},
    {"kernels"},
    {"hub", "tiny"},
    {"harmony", "sampling"},
    {"memory", "device"},
    {"torch_buffers"},
    {"buffers"},
    {"checkpoint", "reader", "recipe"},
    {"shard", "slots", "guesses", "pool"},
    {"config", "machine", "units"},
    {"jsonfile"},
    {"errors", "paths", "disk", "released", "heap", "regular", "launch", "names"},
]
WITHOUT_TENSORS = {
    "__init__",
    "__main__",
    "arguments",
    "backend",
    "buffers",
    "checkpoint",
    "cli",
    "config",
    "disk",
    "doctor",
    "errors",
    "events",
    "exits",
    "guesses",
    "harmony",
    "heap",
    "hub",
    "jsonfile",
    "launch",
    "loop",
    "machine",
    "memory",
    "names",
    "options",
    "paths",
    "plan",
    "pool",
    "clock",
    "question",
    "recipe",
    "regular",
    "released",
    "request",
    "result",
    "reader",
    "session",
    "slots",
    "stream",
    "writer",
    "sampling",
    "shard",
    "terminal",
    "tiny",
    "tokenizer",
    "torch_buffers",
    "units",
}
"""Rooms that import neither mlx nor torch, not even lazily."""


CONVERT = PACKAGE.parent / "convert"
CONVERT_ROWS = [
    {"__main__"},
    {"conversion", "table"},
    {"verify"},
    {"state", "destination"},
    {"weights"},
    {"journal", "manifest"},
    {"folder", "plan"},
    {"sources"},
    {"source"},
    {"piece"},
    {"rules"},
]


def room(path: Path) -> str:
    """The first name under the package: the module or the folder it is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names a source file imports anywhere, those for types included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def rooms_used(path: Path) -> set[str]:
    """Rooms of the package that a file imports; the package itself (__version__) is none."""
    names = {room(path) for path in sources()}
    parts = [name.split(".") for name in imports(path)]
    return {part[1] for part in parts if part[0] == "gptoss_mlx" and len(part) > 1} & names


def test_every_module_has_its_place() -> None:
    named = set().union(*ROWS)
    assert {room(path) for path in sources()} - named == set()


def test_imports_point_down() -> None:
    """A room no row names counts as the lowest, so it may be imported and imports nothing."""
    row = {name: i for i, names in enumerate(ROWS) for name in names}
    upward = [
        f"{path.relative_to(PACKAGE)} imports {used}"
        for path in sources()
        for used in rooms_used(path)
        if row.get(used, len(ROWS)) < row.get(room(path), len(ROWS))
    ]
    assert upward == []


def test_there_are_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in sources():
        graph.setdefault(room(path), set()).update(rooms_used(path) - {room(path)})
    TopologicalSorter(graph).prepare()


def test_rooms_without_tensors_name_no_tensor_library() -> None:
    found = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sources()
        for name in imports(path)
        if room(path) in WITHOUT_TENSORS
        and name.split(".")[0] in ("mlx", "mlx_lm", "torch", "transformers")
    ]
    assert found == []


def test_nothing_installed_needs_an_oracle() -> None:
    """Torch and Triton are what the room for CUDA is made of, and of no other."""
    found = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sources()
        for name in imports(path)
        if name.split(".")[0] in ("mlx_lm", "transformers")
        or (name.split(".")[0] in ("torch", "triton") and room(path) != "cuda")
    ]
    assert found == []


def test_mlx_and_cuda_never_meet() -> None:
    met = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sources()
        for name in imports(path)
        if room(path) == "cuda" and name.split(".")[0] == "mlx"
    ]
    assert met == []


def test_importing_the_package_loads_no_tensor_library() -> None:
    code = (
        "import sys, gptoss_mlx, gptoss_mlx.cli.main\n"
        "heavy = {'mlx', 'torch', 'numpy', 'huggingface_hub', 'transformers'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert run.stdout.strip() == "[]"


def test_the_converter_points_down_and_the_package_never_at_it() -> None:
    row = {name: i for i, names in enumerate(CONVERT_ROWS) for name in names}
    paths = sorted(CONVERT.rglob("*.py"))
    rooms = {path: path.relative_to(CONVERT).parts[0].removesuffix(".py") for path in paths}
    assert set(rooms.values()) - {"__init__"} == set(row)
    upward = [
        f"{path.relative_to(CONVERT)} imports {used}"
        for path in paths
        for used in _relative_imports(path) & set(row)
        if used != rooms[path] and row[used] <= row.get(rooms[path], len(row))
    ]
    assert upward == []
    converter = ("convert", "gptoss_convert")
    backward = [p for p in sources() for name in imports(p) if name.split(".")[0] in converter]
    assert backward == []


def _relative_imports(path: Path) -> set[str]:
    """Rooms of the converter that a file imports, from its own folder or the one above."""
    depth = len(path.relative_to(CONVERT).parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
    return found
