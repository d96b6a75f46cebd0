"""The order of the rooms, read from the folders, and what importing the package loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.root import ROOT
from tests.support.rooms import MODULES, ORDER, PACKAGE, graph, imports, room, upward

CONVERT = ROOT / "convert"

TENSORS = {"mlx": "backends/mlx", "torch": "backends/torch", "triton": "backends/torch"}
"""Libraries, and the folder that may name each."""

CONVERT_ORDER = (
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
)


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name in MODULES} == set(ORDER)


def test_rooms_import_downwards() -> None:
    assert upward() == []


def test_there_are_no_circles() -> None:
    """Between modules, those of one room included."""
    TopologicalSorter(graph()).prepare()


def test_the_backends_never_meet() -> None:
    met = [
        f"{name} imports {used}"
        for name, all_used in graph().items()
        for used in all_used
        for one, other in (("mlx", "torch"), ("torch", "mlx"))
        if name.startswith(f"gptoss_mlx.backends.{one}.")
        and used.startswith(f"gptoss_mlx.backends.{other}.")
    ]
    assert met == []


@pytest.mark.parametrize("library", TENSORS)
def test_a_tensor_library_has_one_room(library: str) -> None:
    """Whether MLX has a GPU is asked in `system/device.py`."""
    allowed = (TENSORS[library], *(("system/device.py",) if library == "mlx" else ()))
    found = {
        str(path.relative_to(PACKAGE))
        for path in MODULES.values()
        for name in imports(path)
        if name.split(".")[0] == library
    }
    assert {name for name in found if not name.startswith(allowed)} == set()


def test_nothing_installed_needs_an_oracle() -> None:
    oracles = ("mlx_lm", "transformers", "tests", "benchmarks")
    found = [p for p in MODULES.values() for name in imports(p) if name.split(".")[0] in oracles]
    assert found == []


def test_importing_the_package_loads_no_tensor_library() -> None:
    code = (
        "import sys, gptoss_mlx, gptoss_mlx.cli.main\n"
        "heavy = {'mlx', 'torch', 'numpy', 'huggingface_hub', 'transformers'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert run.stdout.strip() == "[]"


def test_the_converter_points_down_and_the_package_never_at_it() -> None:
    row = {name: i for i, names in enumerate(CONVERT_ORDER) for name in names}
    paths = sorted(p for p in CONVERT.rglob("*.py") if p.parent.name != "tiny")
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
    backward = [p for p in MODULES.values() for n in imports(p) if n.split(".")[0] in converter]
    assert backward == []


def _relative_imports(path: Path) -> set[str]:
    """Rooms of the converter that a file imports, from its own folder or the one above."""
    depth = len(path.relative_to(CONVERT).parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
    return found
