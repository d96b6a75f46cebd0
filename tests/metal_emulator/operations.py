"""Operations a kernel executes: counted where clang's optimized code has them.

Every basic block of the LLVM text gets a call that adds what the block holds, so a launch counts
what its threads really pass. Counted is arithmetic on elements, a vector's as many times as it has
lanes. Not counted is what a GPU does not compute: moves, 64-bit addresses, widening of an index,
and the upper half of a word taken as a half.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FLOAT = {"fadd", "fsub", "fmul", "fdiv", "frem", "fneg", "fcmp"}
INTEGER = {
    *("add", "sub", "mul", "udiv", "sdiv", "urem", "srem", "shl", "lshr", "ashr"),
    *("and", "or", "xor", "icmp", "select"),
}
CONVERSION = {"fpext", "fptrunc", "sitofp", "uitofp", "fptosi", "fptoui"}
COUNTER = "metal_count_operations"

ASSIGNED = re.compile(r"^  (?:(%[\w.\-]+) = )?(?:tail |musttail |notail )?(\w+)\b(.*)$")
TYPE = re.compile(r"<(\d+) x (\w+)>|\b(half|bfloat|float|double|i\d+|ptr)\b")
CALLED = re.compile(r"@([\w.$\"]+)\(")
FREE_CALLS = re.compile(r"^(_Z|llvm\.(lifetime|dbg|assume|experimental|annotation)|metal_|mtl_)")


@dataclass(frozen=True)
class Operations:
    """Of all threads of a launch."""

    floating: int
    """Arithmetic and comparison; a fused multiply-add, a function such as exp is one."""
    integer: int
    """Arithmetic, logic, shifts, comparisons and choices, of up to 32 bits."""
    conversions: int
    """Between floating types, or floating and integer."""

    @property
    def total(self) -> int:
        return self.floating + self.integer + self.conversions


def instrumented(text: str) -> str:
    """LLVM text in which every basic block counts its operations with COUNTER."""
    out: list[str] = []
    block: list[str] = []
    inside = False
    halves = _halves(text)
    for line in text.splitlines():
        if line.startswith("define "):
            inside, block = True, []
            out.append(line)
        elif inside and (line == "}" or re.match(r"^[\w.\-$\"]+:", line)):
            out += _counted(block, halves)
            out.append(line)
            inside, block = line != "}", []
        elif inside:
            block.append(line)
        else:
            out.append(line)
    return "\n".join([*out, f"declare void @{COUNTER}(i32, i32, i32)", ""])


def _counted(block: list[str], halves: set[str]) -> list[str]:
    counts = [0, 0, 0]
    for line in block:
        kind, lanes = _kind(line, halves)
        if kind is not None:
            counts[kind] += lanes
    if not any(counts):
        return block
    first = next(
        (i for i, line in enumerate(block) if line.strip() and " = phi " not in line), len(block)
    )
    call = f"  call void @{COUNTER}(i32 {counts[0]}, i32 {counts[1]}, i32 {counts[2]})"
    return [*block[:first], call, *block[first:]]


def _kind(line: str, halves: set[str]) -> tuple[int | None, int]:
    """0, 1 or 2 as in `Operations`, or None; and the lanes."""
    found = ASSIGNED.match(line)
    if found is None or found[2] in ("store", "load", "br", "ret", "phi", "switch"):
        return None, 0
    name, operation, rest = found.groups()
    lanes, kind = _type(rest)
    if operation in FLOAT:
        return 0, lanes
    if operation in INTEGER:
        return (None, 0) if kind in ("i64", "ptr") or name in halves else (1, lanes)
    if operation in CONVERSION:
        return 2, lanes
    if operation == "call":
        called = CALLED.search(rest)
        if called is None or FREE_CALLS.match(called[1]) or not name:
            return None, 0
        return (0 if kind in ("half", "bfloat", "float") else 1), lanes
    return None, 0


def _type(rest: str) -> tuple[int, str]:
    found = TYPE.search(rest)
    if found is None:
        return 1, ""
    return (int(found[1]), found[2]) if found[1] else (1, found[3])


def _halves(text: str) -> set[str]:
    """Names of values that are words shifted right by 16 and used as 16 bits only."""
    shifted = set(re.findall(r"(%[\w.\-]+) = lshr (?:exact )?i32 %[\w.\-]+, 16$", text, re.M))
    taken = set(re.findall(r"= trunc (?:nuw )?i32 (%[\w.\-]+) to i16", text))
    return shifted & taken
