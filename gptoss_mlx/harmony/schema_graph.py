"""The graph of a JSON schema: which schemas refer to which, and what they make the compiler do.

The compiler of masks follows references on its stack, multiplies alternatives out and intersects
patterns, all without a limit of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from gptoss_mlx.errors import GrammarError

MAX_TARGETS = 200
MAX_LEVELS = 256  # schemas on the longest way through references
MAX_ALTERNATIVES = 2_000  # of one schema, once those of its parts are multiplied out
MAX_PATTERNS = 8  # patterns that one text must match

_WITHIN = ("items", "additionalProperties")
_NAMED = ("properties", "patternProperties")


class SchemaGraph:
    """Schemas by their place, a JSON pointer. name: what they are for, in errors."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._schemas: dict[str, Any] = {}
        self._depths: dict[str, int] = {}
        self._references: dict[str, str] = {}  # place -> target
        self._costs: dict[str, tuple[int, int]] = {}

    def add(self, place: str, schema: Any, depth: int) -> Any:
        """Note a schema once all schemas in it are noted, and return it."""
        self._schemas[place], self._depths[place] = schema, depth
        return schema

    def refer(self, place: str, target: str) -> None:
        """Note that the schema at `place` has a `$ref` to that at `target`."""
        self._references[place] = target

    def check(self) -> None:
        """Raises GrammarError for a reference to nothing, or if a limit is exceeded."""
        for place, target in self._references.items():
            if target not in self._schemas:
                self._fail(f"$ref at {place} points to {target[:100]}, which is no schema")
        if len(targets := self._targets()) > MAX_TARGETS:
            self._fail(f"has references to more than {MAX_TARGETS} schemas, the limit")
        if self._levels(targets) > MAX_LEVELS:
            self._fail(f"has references through more than {MAX_LEVELS} schemas, the limit")
        for place in self._schemas:
            self._cost(place)
        if "#" not in self._finite():
            self._fail("no JSON text of finite length satisfies it")

    def _fail(self, what: str) -> None:
        raise GrammarError(f"{self._name}: {what}".replace("\n", "\\n"))

    def _targets(self) -> dict[str, set[str]]:
        """The root and every target of a reference, with the targets that it refers to."""
        found: dict[str, set[str]] = {"#": set(), **{t: set() for t in self._references.values()}}
        for place, target in self._references.items():
            for outer in _outer(place):
                if outer in found:
                    found[outer].add(target)
        return found

    def _levels(self, targets: Mapping[str, set[str]]) -> int:
        """The most schemas on a way from the root through references.

        Targets that reach each other count as if the way went through all of them.
        """
        reached = {target: _reach(target, targets) for target in targets}
        heights = {target: 1 for target in targets}
        for place, depth in self._depths.items():
            for outer in _outer(place):
                if outer in heights:
                    heights[outer] = max(heights[outer], depth - self._depths[outer] + 1)
        longest: dict[frozenset[str], int] = {}

        def way(target: str) -> int:
            circle = frozenset({t for t in reached[target] if target in reached[t]} | {target})
            if circle not in longest:
                beyond = {t for member in circle for t in targets[member]} - circle
                here = sum(heights[member] for member in circle)
                longest[circle] = here + max(map(way, beyond), default=0)
            return longest[circle]

        return way("#")

    def _cost(self, place: str) -> tuple[int, int]:
        """(alternatives, patterns) of a schema and those applied in the same place."""
        if place in self._costs:
            return self._costs[place]
        self._costs[place] = 1, 0  # for a reference to it from inside
        schema = self._schemas[place]
        if isinstance(schema, bool):
            return 1, 0
        factors = [len(schema.get("enum", ""))]
        patterns = ("pattern" in schema) + ("format" in schema)
        for key in ("anyOf", "oneOf"):
            costs = [self._cost(f"{place}/{key}/{i}") for i in range(len(schema.get(key, ())))]
            factors.append(sum(alternatives for alternatives, _ in costs))
            patterns += max((count for _, count in costs), default=0)
        both = [f"{place}/allOf/{i}" for i in range(len(schema.get("allOf", ())))]
        both += [self._references[place]] if place in self._references else []
        for alternatives, count in map(self._cost, both):
            factors.append(alternatives)
            patterns += count
        factors = [factor for factor in factors if factor > 1]
        alternatives = prod(factors)
        if len(factors) > 1 and alternatives > MAX_ALTERNATIVES:
            self._fail(f"{place} has more than {MAX_ALTERNATIVES} combinations, the limit")
        if patterns > MAX_PATTERNS:
            self._fail(f"{place} intersects more than {MAX_PATTERNS} patterns, the limit")
        self._costs[place] = alternatives, patterns
        return self._costs[place]

    def _finite(self) -> set[str]:
        """The places of schemas that a text of finite length may satisfy: the least fixpoint."""
        finite, todo = set[str](), [*self._schemas]
        while True:
            before = len(finite)
            for place in todo:
                if self._ends(place, self._schemas[place], finite):
                    finite.add(place)
            if len(finite) == before:
                return finite
            todo = [place for place in todo if place not in finite]

    def _ends(self, place: str, schema: Any, finite: set[str]) -> bool:
        """Whether a schema is satisfied by a finite text, given those known to be."""
        if isinstance(schema, bool):
            return schema
        every = [f"{place}/allOf/{i}" for i in range(len(schema.get("allOf", ())))]
        if place in self._references:
            every.append(self._references[place])
        kinds = schema.get("type")
        if kinds in ("object", ["object"]):
            known = schema.get("properties", {})
            every += [
                f"{place}/properties/{_escape(name)}"
                for name in schema.get("required", ())
                if name in known
            ]
        if kinds in ("array", ["array"]) and schema.get("minItems", 0) > 0:
            first = [f"{place}/prefixItems/0"] if "prefixItems" in schema else [f"{place}/items"]
            every += [one for one in first if one in self._schemas]
        some = [
            any(f"{place}/{key}/{i}" in finite for i in range(len(schema[key])))
            for key in ("anyOf", "oneOf")
            if key in schema
        ]
        return finite.issuperset(every) and all(some)


def _outer(place: str) -> Iterator[str]:
    """The place itself and those it lies in."""
    while True:
        yield place
        place, slash, _ = place.rpartition("/")
        if not slash:
            return


def _reach(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    found, todo = set[str](), [*edges[start]]
    while todo:
        if (target := todo.pop()) not in found:
            found.add(target)
            todo += edges[target]
    return found


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
