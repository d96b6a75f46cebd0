"""Tool schemas: what comes out of the renderer, and that no schema breaks the rewriting."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.harmony import Encoding, render
from gptoss_mlx.harmony.schema import MAX_DEPTH, clean, normalise

NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
    },
    "required": ["value"],
}
POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
DEFS = {"Node": NODE, "Point": POINT, "Color": {"enum": ["red", "green"]}, "A/b~": {"const": 1}}


def typescript(encoding: Encoding, parameters: dict[str, Any]) -> str:
    """The rendered type of a function's argument."""
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    text = encoding.decode(render(encoding, [{"role": "user", "content": ""}], tools=[tool]))
    return text.split("type f = (")[1].split(") => any;\n\n} // namespace")[0]


def field(encoding: Encoding, schema: Any) -> str:
    """The rendered property `x`, its line breaks and indents as single spaces."""
    root = {"type": "object", "$defs": DEFS, "properties": {"x": schema}, "required": ["x"]}
    text = typescript(encoding, root)
    return " ".join(text.removeprefix("_: {").removesuffix("}").split())


@pytest.mark.parametrize(("count", "whole"), [(700, True), (2000, False)])
def test_references_are_followed_as_often_as_a_long_schema_has_them(
    count: int, whole: bool
) -> None:
    """And not without end: what they expand to may grow with every one."""
    properties = {f"p{i}": {"$ref": "#/$defs/Point"} for i in range(count)}
    found = normalise({"type": "object", "$defs": DEFS, "properties": properties})
    followed = ["properties" in inner for inner in found["properties"].values()]
    assert all(followed) == whole


STRING, NUMBER, NULL = {"type": "string"}, {"type": "number"}, {"type": "null"}
FIELDS: list[tuple[Any, str]] = [
    # what the renderer does well stays as it is
    (STRING, "x: string,"),
    ({"type": "string", "nullable": True}, "x: string | null,"),
    ({"type": "string", "enum": ["a", "b"], "default": "a"}, 'x: "a" | "b", // default: a'),
    ({"oneOf": [STRING, NUMBER]}, "x: | string | number ,"),
    ({"type": ["string", "integer"]}, "x: string | number,"),
    ({"type": "array", "items": STRING}, "x: string[],"),
    ({"type": "array"}, "x: Array<any>,"),
    ({}, "x: any,"),
    (True, "x: any,"),
    # const and enum of anything
    ({"const": "a"}, 'x: "a",'),
    ({"const": 5}, "x: 5,"),
    ({"const": None}, "x: null,"),
    ({"enum": ["a", "b"]}, 'x: "a" | "b",'),
    ({"enum": [1, "a", None, True, [1]]}, 'x: 1 | "a" | null | true | [1],'),
    ({"type": "integer", "enum": [1, 2]}, "x: 1 | 2,"),
    ({"type": ["string", "null"], "enum": ["a", None]}, 'x: "a" | null,'),
    ({"type": "array", "items": {"enum": [1, 2]}}, "x: (1 | 2)[],"),
    # unions
    ({"anyOf": [STRING, NULL], "default": None}, "x: string | null, // default: null"),
    ({"anyOf": [STRING, {"type": "array", "items": STRING}]}, "x: string | string[],"),
    ({"anyOf": [{"anyOf": [STRING, NUMBER]}, NULL, STRING]}, "x: string | number | null,"),
    ({"oneOf": [STRING, NULL]}, "x: string | null,"),
    ({"anyOf": [STRING]}, "x: string,"),
    ({"anyOf": [POINT, NULL]}, "x: | { x: number, } | null ,"),
    ({"anyOf": [{**STRING, "description": "d"}, NULL]}, "x: | string // d | null ,"),
    ({"type": "array", "items": {"anyOf": [STRING, NUMBER]}}, "x: (string | number)[],"),
    ({"type": "array", "items": {**STRING, "nullable": True}}, "x: (string | null)[],"),
    ({"type": ["array", "null"], "items": STRING}, "x: string[] | null,"),
    ({"type": "string", "enum": ["null!"], "nullable": True}, 'x: "null!" | null,'),
    ({"type": "array", "items": {"enum": ["a", None], "nullable": True}}, 'x: ("a" | null)[],'),
    ({**POINT, "nullable": True}, "x: | { x: number, } | null ,"),
    ({**POINT, "anyOf": [{"required": ["x"]}, {"required": []}]}, "x: { x: number, },"),
    (
        {"type": "object", "oneOf": [{"properties": {"a": STRING}}, {"properties": {"b": NULL}}]},
        "x: | { a?: string, } | { b?: null, } ,",
    ),
    # references
    ({"$ref": "#/$defs/Color", "description": "the color"}, '// the color x: "red" | "green",'),
    ({"$ref": "#/$defs/A~1b~0"}, "x: 1,"),
    ({"$ref": "#/$defs/Node"}, "x: { value: number, children?: object[], },"),
    ({"type": "array", "items": {"$ref": "#/$defs/Point"}}, "x: { x: number, }[],"),
    ({"$ref": "#"}, "x: { x: object, },"),
    ({"$ref": "#/$defs/none"}, "x: any,"),
    ({"$ref": "http://elsewhere/"}, "x: any,"),
    (
        {"allOf": [{"$ref": "#/$defs/Point"}, {"properties": {"y": NUMBER}, "required": ["y"]}]},
        "x: { y: number, x: number, },",
    ),
    # maps, tuples, types left out
    ({"type": "object", "additionalProperties": NUMBER}, "x: { [key: string]: number, },"),
    ({"type": "object", "additionalProperties": {}}, "x: object,"),
    ({"type": "object"}, "x: object,"),
    ({"type": "object", "additionalProperties": True}, "x: object,"),
    ({"type": "object", "additionalProperties": False}, "x: { },"),
    ({"type": "array", "prefixItems": [STRING, NUMBER]}, "x: [string, number],"),
    ({"items": STRING}, "x: string[],"),
    ({"properties": {"a": STRING}}, "x: { a?: string, },"),
    ({"minimum": 3}, "x: number,"),
    ({"type": "int"}, "x: number,"),
    (False, "x: never,"),
]


@pytest.mark.parametrize(("schema", "expected"), FIELDS)
def test_property_renders_with_its_meaning(encoding: Encoding, schema: Any, expected: str) -> None:
    assert field(encoding, schema) == expected


def test_function_without_arguments_takes_none(encoding: Encoding) -> None:
    assert typescript(encoding, {"type": "object", "properties": {}}) == ""


def test_root_may_be_a_reference_or_a_union(encoding: Encoding) -> None:
    assert "value: number" in typescript(encoding, {"$ref": "#/$defs/Node", "$defs": DEFS})
    union = {"anyOf": [{"$ref": "#/$defs/Point"}, {"$ref": "#/$defs/Node"}], "$defs": DEFS}
    text = typescript(encoding, union)
    assert "value: number" in text
    assert "x: number" in text


def test_schemas_that_expand_without_end_terminate(encoding: Encoding) -> None:
    two = {"allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/c"}]}
    defs: dict[str, Any] = {"a": two, "b": {"anyOf": [two, two]}, "c": {"items": two}}
    for number in range(30):
        inner = {"$ref": f"#/$defs/{number + 1}"}
        defs[str(number)] = {"type": "object", "properties": {"l": inner, "r": inner}}
    for name in ("a", "b", "c", "0"):
        typescript(encoding, {"$ref": f"#/$defs/{name}", "$defs": defs})
    loop = {"$ref": "#/$defs/l", "$defs": {"l": {"$ref": "#/$defs/m"}, "m": {"$ref": "#/$defs/l"}}}
    assert normalise(loop) == {"type": ["object"]}


def test_deep_nesting_is_cut_not_refused(encoding: Encoding) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(500):
        schema = {"type": "object", "properties": {"x": schema}}
    assert typescript(encoding, schema).count("{") >= MAX_DEPTH // 3


def test_clean_keeps_json_and_repairs_the_rest() -> None:
    plain = {"a": [1, 2.5, None, True, "ü"], "b": {"c": {}}}
    assert clean(plain) == plain
    assert clean({1: ("\ud800", float("inf"), {1})}) == {"1": ["\ufffd", None, "{1}"]}


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
KEYS = [
    *("type", "properties", "items", "prefixItems", "enum", "const", "anyOf", "oneOf", "allOf"),
    *("$ref", "$defs", "required", "additionalProperties", "patternProperties", "nullable"),
    *("description", "default", "title", "examples", "x", "minimum"),
]
WORDS = ["string", "object", "array", "null", "integer", "#", "#/$defs/x", "#/properties/x", "x"]


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    return objects | st.lists(inner, max_size=3)


SCHEMAS = st.recursive(LEAVES | st.sampled_from(WORDS), nested, max_leaves=25)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), SCHEMAS, max_size=6))
def test_anything_like_a_schema_renders(encoding: Encoding, schema: dict[str, Any]) -> None:
    assert isinstance(typescript(encoding, schema), str)


def typed(depth: int) -> st.SearchStrategy[Any]:
    """Schemas that say what they allow everywhere."""
    leaf = st.sampled_from(
        [STRING, NUMBER, NULL, {"type": "boolean"}, {"const": 3}, {"enum": ["a", None]}]
    )
    if depth == 0:
        return leaf
    inner = typed(depth - 1)
    return (
        leaf
        | st.builds(lambda item: {"type": "array", "items": item}, inner)
        | st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda parts: {"oneOf": parts}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(
            lambda inner: {"type": "object", "properties": inner},
            st.dictionaries(st.sampled_from("pqr"), inner, min_size=1, max_size=3),
        )
        | st.just({"$ref": "#/$defs/Node"})
    )


@settings(max_examples=200, deadline=None)
@given(typed(3))
def test_schemas_without_holes_never_render_as_any(encoding: Encoding, schema: Any) -> None:
    assert "any" not in field(encoding, schema)
