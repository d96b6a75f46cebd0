"""LLVM text by functions and basic blocks: what both kinds of instrumentation need of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

LABEL = re.compile(r'^([\w.$\-]+|"[^"]+"):')
TERMINATOR = re.compile(r"^  (br|switch|ret|unreachable)\b")
TARGET = re.compile(r'label %([\w.$\-]+|"[^"]+")')


def rewritten(text: str, function: Callable[[list[str]], list[str]], declarations: str) -> str:
    """The text with the lines of each function's body replaced, and declarations added."""
    out: list[str] = []
    body: list[str] | None = None
    for line in text.splitlines():
        if line.startswith("define "):
            body = []
            out.append(line)
        elif body is not None and line == "}":
            out += [*function(body), line]
            body = None
        else:
            (out if body is None else body).append(line)
    return "\n".join([*out, declarations, ""])


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """The lines of each basic block of a function, its label first; the entry may have none."""
    block: list[str] = []
    for line in lines:
        if LABEL.match(line):
            if block:
                yield block
            block = []
        block.append(line)
    yield block


def begin(block: list[str]) -> int:
    """Where instructions may be put: after the label and the phis."""
    return next(
        i for i, line in enumerate(block) if line.startswith("  ") and " = phi " not in line
    )


def end(block: list[str]) -> int:
    """Where the block's last instruction begins."""
    return next(i for i, line in enumerate(block) if TERMINATOR.match(line))


def name(block: list[str]) -> str:
    """The block's label, "" where it has none."""
    found = LABEL.match(block[0])
    return found[1] if found else ""


def targets(block: list[str]) -> list[str]:
    """Labels of the blocks that may follow."""
    return TARGET.findall("\n".join(block[end(block) :]))
