"""Operations a kernel executes: counted where clang's optimized code has them.

Every basic block of the LLVM text gets a call that adds what the block holds, so a launch counts
what its threads really pass. Counted is arithmetic on elements, a vector's as many times as it has
lanes. Not counted is what a GPU does not compute or every kernel does alike: moves and jumps,
arithmetic that leads to addresses only, the upper half of a word taken as a half, signs and
magnitudes (operands are taken with them), and simdgroup functions (`Launch.simd_operations` and
`multiplications` count those). A product that is only added to something is one operation with
the sum, as Metal fuses them; a division is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from . import blocks

FLOAT = {"fadd", "fsub", "fmul", "fdiv", "frem", "fcmp"}
INTEGER = {
    *("add", "sub", "mul", "udiv", "sdiv", "urem", "srem", "shl", "lshr", "ashr"),
    *("and", "or", "xor", "icmp", "select"),
}
CONVERSION = {"fpext", "fptrunc", "sitofp", "uitofp", "fptosi", "fptoui"}
MOVES = {"sext", "zext", "trunc", "phi", "freeze"}
FLOATING_TYPES = ("half", "bfloat", "float", "double")
ADDRESSES = ("i64", "ptr")
COUNTER = "metal_count_operations"

NAME = r'%(?:"[^"]+"|[\w.$\-]+)'
ASSIGNED = re.compile(rf"^  ({NAME}) = (?:tail |musttail |notail )?(\w+)\b(.*)$")
OPERAND = re.compile(NAME)
TYPE = re.compile(r"<(\d+) x (\w+)>|\b(half|bfloat|float|double|i\d+|ptr)\b")
CALLED = re.compile(r'@("[^"]+"|[\w.$\-]+)\(')
DEFINED = re.compile(r'^define .*?@("[^"]+"|[\w.$\-]+)\(', re.M)
FREE_CALLS = re.compile(
    r"^(mtl_|metal_|llvm\.(lifetime|dbg|assume|experimental|annotation|expect|launder|objectsize"
    r"|fabs))"
)


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


@dataclass(frozen=True)
class Value:
    """What one line of LLVM text assigns."""

    operation: str
    lanes: int
    type: str
    called: str = ""
    half: bool = False
    """A shift by 16."""
    contract: bool = False
    """May be fused with another."""


def instrumented(text: str) -> str:
    """LLVM text in which every basic block counts its operations with COUNTER."""
    defined = set(DEFINED.findall(text))
    declaration = f"declare void @{COUNTER}(i32, i32, i32)"
    return blocks.rewritten(text, lambda lines: _with_counts(lines, defined), declaration)


def _with_counts(lines: list[str], defined: set[str]) -> list[str]:
    """A function's lines, with a call after the phis of each block that computes anything."""
    values = dict(_values(lines))
    free = _free(lines, values)
    out: list[str] = []
    for block in blocks.blocks(lines):
        counts = [0, 0, 0]
        for line in block:
            found = ASSIGNED.match(line)
            if found and found[1] not in free:
                kind = _kind(values[found[1]], defined)
                if kind is not None:
                    counts[kind] += values[found[1]].lanes
        out += _inserted(block, counts) if any(counts) else block
    return out


def _inserted(block: list[str], counts: list[int]) -> list[str]:
    at = blocks.begin(block)
    adds = ", ".join(f"i32 {count}" for count in counts)
    return [*block[:at], f"  call void @{COUNTER}({adds})", *block[at:]]


def _values(lines: list[str]) -> Iterator[tuple[str, Value]]:
    for line in lines:
        if found := ASSIGNED.match(line):
            name, operation, rest = found.groups()
            yield name, _value(operation, rest)


def _value(operation: str, rest: str) -> Value:
    types = TYPE.findall(rest)
    called = CALLED.search(rest) if operation == "call" else None
    which = 0
    if operation == "select" and len(types) > 1:
        which = 1  # after the condition's
    if called and ".reduce." in called[1]:
        which = len(types) - 1  # the vector's, not the result's
    lanes, element, scalar = types[which] if types else ("", "", "")
    return Value(
        operation,
        int(lanes or 1),
        element or scalar,
        called[1] if called else "",
        rest.endswith(", 16"),
        "contract " in rest,
    )


def _kind(value: Value, defined: set[str]) -> int | None:
    """0, 1 or 2 as in `Operations`, or None for what is not counted."""
    if value.operation in FLOAT:
        return 0
    if value.operation in INTEGER:
        return None if value.type in ADDRESSES else 1
    if value.operation in CONVERSION:
        return 2
    if not value.called or value.called in defined or FREE_CALLS.match(value.called):
        return None
    if value.type in FLOATING_TYPES:
        return 0
    return None if value.type in (*ADDRESSES, "") else 1


def _free(lines: list[str], values: dict[str, Value]) -> set[str]:
    """Names of integers that lead to addresses only, and of words shifted to take a half."""
    users = _users(lines)
    free = {
        name
        for name, value in values.items()
        if (value.operation in INTEGER | MOVES or value.called.startswith("llvm."))
        and value.type not in FLOATING_TYPES
    }
    while True:
        kept = {
            name
            for name in free
            if all(used in free or _makes_address(line) for used, line in users.get(name, ()))
        }
        if kept == free:
            break
        free = kept
    halves = {
        name
        for name, value in values.items()
        if value.operation == "lshr"
        and value.half
        and all(" = trunc " in line and line.endswith(" to i16") for _, line in users[name])
    }
    return free | halves | _fused(values, users)


def _fused(values: dict[str, Value], users: dict[str, list[tuple[str, str]]]) -> set[str]:
    """Names of products that a sum takes in, one a sum."""
    sums: dict[str, str] = {}
    for name, value in values.items():
        if value.operation == "fmul" and value.contract and len(users.get(name, ())) == 1:
            used = values.get(users[name][0][0])
            if used and used.operation in ("fadd", "fsub") and used.contract:
                sums.setdefault(users[name][0][0], name)
    return set(sums.values())


def _makes_address(line: str) -> bool:
    """Of memory: a table in the text is a way to compute."""
    return (" = getelementptr " in line and " @" not in line) or " = inttoptr " in line


def _users(lines: list[str]) -> dict[str, list[tuple[str, str]]]:
    """For each name the lines that use it, with the names those assign ("" where none)."""
    users: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        found = ASSIGNED.match(line)
        name, rest = (found[1], found[3]) if found else ("", line)
        for operand in set(OPERAND.findall(rest)):
            users.setdefault(operand, []).append((name, line))
    return users
