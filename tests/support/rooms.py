"""The package's rooms (folders), their order, and who imports whom, read from the source files."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.root import ROOT

PACKAGE = ROOT / "gptoss_mlx"

ORDER = (
    "__main__",
    "generate",
    "cli",
    "server",
    "tools",
    "__init__",
    "engine",
    "backends",
    "plan",
    "settings",
    "system",
    "models",
    "harmony",
    "spec",
    "files",
    "errors",
    "launch",
)
"""Rooms from the top down: one imports only those below it."""


def modules(folder: Path, package: str) -> dict[str, Path]:
    """Dotted name -> source file; a folder's own is that of its `__init__.py`."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES: Mapping[str, Path] = modules(PACKAGE, "gptoss_mlx")


def imports(path: Path) -> Iterator[str]:
    """Dotted names a source file imports anywhere, those for types included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def graph() -> dict[str, set[str]]:
    """The package's modules and what each imports of the package, its version aside."""
    return {
        name: {used for used in imports(path) if used in MODULES} - {name, "gptoss_mlx"}
        for name, path in MODULES.items()
    }


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def upward() -> list[str]:
    """Imports against the order."""
    return [
        f"{name} imports {used}"
        for name, all_used in graph().items()
        for used in sorted(all_used)
        if ORDER.index(room(used)) < ORDER.index(room(name))
    ]
