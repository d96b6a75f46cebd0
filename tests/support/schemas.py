"""Random JSON schemas of the keywords that are enforced, and random texts under their masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from gptoss_mlx.harmony.encoding import RETURN
from tests.support.sampling_oracle import flags

CLOSING = (RETURN, 1, 92, 60)
"""The end, a quote and the brackets that close an object and an array."""

NAMES = ("a", "b", 'c"d', "é")
_COUNT = st.integers(0, 3)
_NUMBER = st.integers(-40, 40).map(lambda n: n / 4)
LITERALS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-99, 99),
    st.sampled_from([0.5, -2.25, 1e3, "", "a", 'b"\\', "é\n", [1, "x"], [], {}, {"a": None}]),
)
STRINGS = st.one_of(
    st.fixed_dictionaries({"type": st.just("string"), "maxLength": st.integers(0, 6)}),
    st.fixed_dictionaries(
        {
            "type": st.just("string"),
            "pattern": st.sampled_from(["^[a-f]{2,4}$", "^x", "ab?c$", "^(yes|no)$", "\\d"]),
            "maxLength": st.integers(5, 9),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("string"),
            "format": st.sampled_from(["date", "time", "uuid", "ipv4", "duration"]),
        }
    ),
)
NUMBERS = st.one_of(
    st.builds(
        lambda kind, low, size: {"type": kind, "minimum": low, "exclusiveMaximum": low + size},
        st.sampled_from(["integer", "number"]),
        _NUMBER,
        st.integers(2, 9),
    ),
    st.builds(
        lambda step, low: {"type": "integer", "multipleOf": step, "minimum": low, "maximum": 99},
        st.integers(1, 7),
        st.integers(-20, 20),
    ),
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(fields: dict[str, Any], required: set[str], other: Any, least: int) -> Any:
        schema = {"type": "object", "properties": fields, "additionalProperties": other}
        wanted = [name for name in fields if name in required]
        return {**schema, "required": wanted} | (
            {"minProperties": least + len(wanted)} if wanted == [*fields] and other else {}
        )

    names = st.sampled_from(NAMES)
    return st.builds(
        build,
        st.dictionaries(names, inner, max_size=3),
        st.sets(names),
        st.one_of(st.just(False), inner),
        st.integers(0, 1),
    )


def _arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda first, rest, least, more: {
            "type": "array",
            **({"prefixItems": first} if first else {}),
            "items": rest,
            "minItems": least,
            "maxItems": max(least, len(first)) + more,
        },
        st.lists(inner, max_size=2),
        inner,
        _COUNT,
        _COUNT,
    )


def _unions(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
        st.tuples(STRINGS, NUMBERS).map(lambda two: {"oneOf": [*two]}),
        inner.map(lambda one: {"allOf": [one, {"description": "noted"}]}),
        st.just({"$ref": "#/$defs/tree"}),
    )


SCHEMAS = st.recursive(
    st.one_of(
        STRINGS,
        NUMBERS,
        st.sampled_from([{"type": "null"}, {"type": ["boolean", "null"]}]),
        LITERALS.map(lambda value: {"const": value}),
        st.lists(LITERALS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    ),
    lambda inner: st.one_of(_objects(inner), _arrays(inner), _unions(inner)),
    max_leaves=6,
).map(lambda schema: {"$defs": {"tree": TREE}, **schema})
TREE = {
    "type": "object",
    "properties": {"leaf": {"type": "boolean"}, "next": {"$ref": "#/$defs/tree"}},
    "required": ["leaf"],
    "additionalProperties": False,
}


def walk(
    state: Any, rng: np.random.Generator, most: int, vocab: int, close: float = 0.0
) -> tuple[list[int], Any]:
    """Random permitted tokens, up to the end or so many; and the state after them.

    close: how often the first of CLOSING that is permitted is taken.
    """
    ids: list[int] = []
    while len(ids) < most:
        allowed = np.flatnonzero(flags(state.mask, vocab))
        if rng.random() < close:
            allowed = next(([id] for id in CLOSING if id in allowed), allowed)
        ids.append(int(rng.choice(allowed)))
        if ids[-1] == RETURN:
            break
        state = state.advance(ids[-1])
    return ids, state
