"""The text MLX generates for a kernel call, obtained from MLX itself."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .errors import MetalError
from .text import Text

STDOUT = 1


@dataclass(frozen=True)
class Generated:
    """A call's text and the kernel in it, with its template arguments."""

    text: Text
    call: str


def generate(
    name: str, kernel: Callable[..., Any], inputs: list[mx.array], **call: Any
) -> Generated:
    """What MLX would hand to Metal for `kernel(inputs=inputs, **call)`; nothing is run.

    Tracing an export makes MLX print the text also where it has no Metal.
    """

    def traced(*arrays: mx.array) -> Any:
        return kernel(inputs=list(arrays), verbose=True, **call)

    body = printed(lambda export: mx.export_function(export, traced, *inputs))
    body = body[body.index("```\n") + 4 : body.rindex("\n```")]
    found = re.search(r"\[\[kernel\]\] void (custom_kernel_\w+)\(", body)
    if not found:
        raise MetalError(f"{name}: MLX printed no kernel")
    instance = re.search(r"\[\[kernel\]\] decltype\((\w+<.*>)\)", body)
    return Generated(mark(body, name), instance[1] if instance else found[1])


def printed(export: Callable[[str], None]) -> str:
    """What MLX writes to the process's standard output while it exports to a file."""
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        kept = os.dup(STDOUT)
        path = Path(folder) / "printed"
        with path.open("w") as file:
            os.dup2(file.fileno(), STDOUT)
            try:
                export(str(Path(folder) / "call.mlxfn"))
            finally:
                os.dup2(kept, STDOUT)
                os.close(kept)
        return path.read_text()


def mark(body: str, name: str) -> Text:
    """The text as file `<name>.metal`, also where #line markers of its header reach further."""
    start = body.index("[[kernel]] void custom_kernel_")
    template = body.rfind("template <", 0, start)
    if template >= 0 and body[template:start].count("\n") == 1:
        start = template
    file = f"{name}.metal"
    if not re.search(r"^\s*#\s*(?:line\s+)?\d+ \"", body[:start], re.MULTILINE):
        return Text(body, file)
    line = body.count("\n", 0, start) + 1
    before = body[:start] if body[:start].endswith("\n") else body[:start] + "\n"
    return Text(f'{before}#line {line} "{file}"\n{body[start:]}', file)
