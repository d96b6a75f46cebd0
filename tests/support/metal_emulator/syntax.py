"""What Metal forbids and clang allows, found in clang's dump of the syntax tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .text import Place

LOCATION = re.compile(r"\b(?:line:(?P<line>\d+):\d+|col:\d+)|(?P<file>[^\s<>,:']+):(?P<at>\d+):\d+")
QUOTED = re.compile(r"'[^']*'")
VARIABLE = re.compile(r"\b(?:ParmVarDecl|VarDecl|FieldDecl) 0x")
FUNCTION = re.compile(r"\b(?:FunctionDecl|CXXMethodDecl|CXXConstructorDecl) (0x\w+)")
REFERS = re.compile(
    r"DeclRefExpr .* (?:Function|CXXMethod) (0x\w+) '|\bMemberExpr .* (?:\.|->)\S+ (0x\w+)$"
)
IMPLICIT = re.compile(r"Decl 0x.* implicit ")
TO_BFLOAT = re.compile(
    r"\bImplicitCastExpr .*'(?:__bf16|bfloat)[^']*'(?::'__bf16')? <FloatingCast>(?! part_of)"
)
SPACES = ("__global", "__local", "__constant", "__private")


@dataclass
class Calls:
    """Which functions call which, by clang's addresses."""

    edges: dict[str, set[str]] = field(default_factory=dict)
    names: dict[str, tuple[str, Place]] = field(default_factory=dict)
    canonical: dict[str, str] = field(default_factory=dict)

    def cycles(self) -> Iterator[str]:
        """Functions that reach themselves."""
        for start in self.names:
            seen: set[str] = set()
            todo = list(self.edges.get(start, ()))
            while todo:
                one = self.canonical.get(todo.pop(), "")
                if one == start:
                    yield start
                    break
                if one and one not in seen:
                    seen.add(one)
                    todo += self.edges.get(one, ())


def faults(dump: str, files: frozenset[str]) -> list[str]:
    """One line for each fault in the kernel's own `files`: `file:line: error: what`."""
    found: dict[str, None] = {}
    calls = Calls()
    place = here = Place("", 0)
    function, function_depth, implicit_depth = "", -1, 1 << 20
    for row in dump.splitlines():
        depth = len(row) - len(row.lstrip(" |`-"))
        place = moved(place, row)
        here = place if place.file in files else here
        if depth <= function_depth:
            function, function_depth = "", -1
        if depth <= implicit_depth:
            implicit_depth = depth if IMPLICIT.search(row) else 1 << 20
        if declared := FUNCTION.search(row):
            function, function_depth = note_function(calls, row, declared[1], here), depth
        elif function and (refers := REFERS.search(row)):
            calls.edges.setdefault(function, set()).add(refers[1] or refers[2])
        if place.file in files and depth < implicit_depth and (what := fault_of(row)):
            found[f"{here}: error: {what}"] = None
    for one in calls.cycles():
        name, where = calls.names[one]
        found[f"{where}: error: {name} calls itself: Metal has no recursion"] = None
    return list(found)


def moved(place: Place, row: str) -> Place:
    """Where the dump is after a row: it prints of a location only what changed."""
    for location in LOCATION.finditer(QUOTED.sub("''", row)):
        if location["file"]:
            place = Place(location["file"], int(location["at"]))
        elif location["line"]:
            place = Place(place.file, int(location["line"]))
    return place


def note_function(calls: Calls, row: str, address: str, here: Place) -> str:
    """The function's address; its later declarations stand for the first."""
    earlier = re.search(r"\bprev (0x\w+)", row)
    first = calls.canonical.get(earlier[1], earlier[1]) if earlier else address
    calls.canonical[address] = calls.canonical[first] = first
    name = re.search(r"(\w+) '", row)
    calls.names.setdefault(first, (name[1] if name else "a function", here))
    return first


def fault_of(row: str) -> str | None:
    """What is wrong with the node in one row of the dump."""
    if TO_BFLOAT.search(row):
        return "implicit conversion to bfloat"
    typed = re.search(r"(\w+ )?'([^']*)'", row)
    if not typed:
        return None
    name = (typed[1] or "it").strip()
    if VARIABLE.search(row) and unqualified(typed[2]):
        return f"{name}: a pointer or reference needs an explicit address space"
    if re.search(r"\b(?:FunctionDecl|CXXMethodDecl) 0x", row):
        returned = typed[2].partition("(")[0]
        if unqualified(returned):
            return f"{name} returns a pointer or reference without an address space"
    return None


def unqualified(kind: str) -> bool:
    """Whether a type points or refers to memory of no named address space."""
    if "mtl_shared_" in kind:
        return False
    plain = re.sub(r"\[[^\]]*\]|<[^<>]*>", "", kind)  # lengths may be products
    target = re.match(r"[^*&]*[*&]", plain)
    return target is not None and not any(space in target[0] for space in SPACES)
