"""The JSON Schema dialect: what is not enforced is named with its place, and nothing takes long."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from typing import Any

import pytest

from gptoss_mlx.errors import GrammarError
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.harmony.compiler import Compiler
from gptoss_mlx.harmony.dialect import checked
from gptoss_mlx.harmony.encoding import VOCAB_SIZE

UNKNOWN = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"),
    *("contains", "minContains", "maxContains", "propertyNames", "additionalItems"),
    *(
        "unevaluatedItems",
        "unevaluatedProperties",
        "$dynamicRef",
        "$dynamicAnchor",
        "$recursiveRef",
    ),
    *("$vocabulary", "$id", "nullable", "x-guidance", "lenient", "minLenght", "", "a\nb", "é"),
)


@pytest.mark.parametrize("keyword", UNKNOWN)
def test_an_unsupported_keyword_is_named_with_its_place(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a/b": {"anyOf": [{}, {keyword: True}]}}}
    with pytest.raises(GrammarError) as raised:
        checked(schema, "response_format")
    shown = keyword.encode("ascii", "backslashreplace").decode().replace("\n", "\\n")
    place = "#/properties/a~1b/anyOf/1"
    assert str(raised.value) == f'response_format: "{shown}" at {place} is not supported'


def test_annotations_are_left_out() -> None:
    notes = {
        **dict.fromkeys(("title", "description", "$comment"), "x"),
        **{key: [{"not": 1}] for key in ("default", "examples")},
        **dict.fromkeys(("deprecated", "readOnly", "writeOnly"), True),
        **{"contentMediaType": "text/plain", "contentEncoding": "base64", "contentSchema": {}},
        **{"$schema": "http://json-schema.org/draft-07/schema#", "uniqueItems": False},
    }
    schema = {"$id": "http://x/y", **notes, "type": "object", "properties": {"title": notes}}
    assert checked(schema, "x") == {"type": "object", "properties": {"title": {}}}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"uniqueItems": True}, '"uniqueItems" at # is not supported'),
        ({"items": [{}]}, "#/items is .*, but must be a schema"),
        ({"type": "strin"}, "#/type is 'strin', but must be of object"),
        ({"type": []}, "#/type is"),
        ({"format": "iri"}, "\"format\" at #/format is 'iri', but only date"),
        ({"format": "unknown"}, '"format" at #/format'),
        ({"properties": []}, "#/properties must be an object"),
        ({"anyOf": []}, "#/anyOf must be a list of schemas, and not empty"),
        ({"enum": []}, "#/enum must be a list of values, and not empty"),
        ({"required": "a"}, "#/required must be a list"),
        ({"required": [1]}, "#/required has 1"),
        ({"minLength": -1}, "#/minLength is -1"),
        ({"minLength": True}, "#/minLength is True"),
        ({"minItems": 1.5}, "#/minItems is 1.5"),
        ({"minItems": 10**9}, "#/minItems is 1000000000, above the limit of 100000"),
        ({"exclusiveMinimum": True}, "#/exclusiveMinimum is True, but must be a number"),
        ({"minimum": float("nan")}, "#/minimum is nan"),
        ({"const": 10**400}, "#/const is .*beyond 2"),
        ({"enum": [1, 2**53 + 2]}, "#/enum is .*beyond 2"),
        ({"const": {1: 2}}, "#/const has 1"),
        ({"const": object()}, "#/const is <object"),
        ({"multipleOf": 0}, "#/multipleOf is 0, but must be above 0"),
        ({"minProperties": 2}, '"minProperties" at # is not supported above'),
        ({"const": "a\0b"}, "#/const has .*with a control character"),
        ({"enum": ["a", "a\x7fb"]}, "#/enum has .*with a control character"),
        *(
            ({"pattern": pattern}, "#/pattern is .*with a control character")
            for pattern in (
                "a\0",
                r"a\x00",
                r"\u007F",
                r"a[\x00-\x1f]",
                r"[\x01]+",
                r"\x{1b}",
                r"\v",
            )
        ),
        ({"pattern": "a" * 10_001}, "#/pattern has"),
        ({"$ref": "http://x/y"}, "#/\\$ref is 'http://x/y', but must point into the schema"),
        ({"$ref": "#/$defs/a"}, "\\$ref at # points to #/\\$defs/a, which is no schema"),
        (
            {"$ref": "#/default", "default": {}},
            "\\$ref at # points to #/default, which is no schema",
        ),
        ({"properties": {"a": 5}}, "#/properties/a is 5, but must be a schema"),
    ],
)
def test_a_bad_value_is_named_with_its_place(schema: Any, says: str) -> None:
    with pytest.raises(GrammarError, match=f"^f: {says}"):
        checked(schema, "f")


def test_references_are_followed_and_escapes_understood() -> None:
    schema = {
        "$defs": {"a b/c": {"type": "null"}, "d": {"$ref": "#/$defs/a%20b~1c"}},
        "anyOf": [{"$ref": "#/$defs/d"}, {"$ref": "#"}, {"$ref": "#/anyOf/0"}],
    }
    assert checked(schema, "x") == schema


@pytest.mark.parametrize(
    "pattern",
    ["^[^\\x00-\\x1f]*$", "[\\x00-\\x7f]", "[\\x00a]b", "\\n\\t", "\\\\x00", "\\x41", "a\\\\v"],
)
def test_patterns_that_need_no_control_character_are_taken(pattern: str) -> None:
    assert checked({"pattern": pattern}, "x") == {"pattern": pattern}


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = wrap(schema)
    return schema


def fields(count: int, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}}


def chain(length: int, link: Callable[[Any], Any]) -> dict[str, Any]:
    defs = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{length}": {"type": "null"}}}


LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
LONG = "#/$defs/long"
HOSTILE: dict[str, Any] = {
    "100,000 schemas": {"prefixItems": [{"type": "string"}] * 100_000},
    "100,000 properties": fields(100_000),
    "1,001 properties": fields(1_001),
    "deep arrays": nested(5_000, lambda s: {"type": "array", "items": s}),
    "deep objects": nested(30, lambda s: {"type": "object", "properties": {"a": s}}),
    "deep const": {"const": nested(5_000, lambda s: [s])},
    "doubled": nested(20, lambda s: {"allOf": [s, s]}),
    "itself": {"$ref": "#"},
    "two that loop": LOOP,
    "no end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "no end in arrays": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "all of itself": {"allOf": [{"$ref": "#"}, {"type": "object"}]},
    "a chain": chain(900, lambda s: s),
    "a chain of objects": chain(150, lambda s: {"type": "object", "properties": {"a": s}}),
    "a huge enum": {"enum": [f"value {i * 7919}" for i in range(100_000)]},
    "enums multiplied": {"allOf": [{"enum": [f"a{i}" for i in range(300)]}] * 2},
    "alternatives multiplied": {"allOf": [{"anyOf": [fields(i) for i in range(60)]}] * 3},
    "patterns intersected": {
        "allOf": [{"type": "string", "pattern": f".{{{i}}}a"} for i in range(1, 60)]
    },
    "many pattern properties": {"patternProperties": {f"^x{i}_": {} for i in range(200)}},
    "a long const": {"const": "x" * 1_000_000},
    "1e9 items": {"type": "array", "minItems": 10**9},
    "a pattern of groups": {"type": "string", "pattern": "(" * 5_000 + "a" + ")" * 5_000},
    "a required property that is false": {
        "type": "object",
        "properties": {"a": False},
        "required": ["a"],
    },
    "a large multiple": {"type": "integer", "multipleOf": 1_000_000_007},
}


@pytest.fixture(scope="module")
def compiler(encoding: Encoding) -> Compiler:
    compiler = Compiler(lambda: encoding.trie, VOCAB_SIZE)
    compiler.regex("a")
    return compiler


@pytest.mark.timeout(20)
@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_schema_is_refused_in_one_line(compiler: Compiler, schema: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GrammarError) as raised:
        compiler.schema(schema, "response_format")
    assert str(raised.value).startswith("response_format: ")
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)
    unit = 1024 if resource.getpagesize() == 4096 else 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert grown < 300 << 20


ALLOWED: dict[str, Any] = {
    "10 objects of 500 properties": {
        "type": "object",
        "properties": {f"o{i}": fields(500) for i in range(10)},
    },
    "20,000 values": {"enum": [f"v{i}" for i in range(20_000)]},
    "a chain of 100": chain(100, lambda s: {"type": "object", "properties": {"a": s}}),
    "repeated repetition": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
    "nested quantifiers": {"type": "string", "pattern": "(x+x+)+y"},
    "a billion at most": {"type": "array", "maxItems": 10**9, "items": {"maxLength": 10**9}},
    "recursive": {"type": "object", "properties": {"a": {"$ref": "#"}}},
    "30 that know each other": {
        "$ref": "#/$defs/n0",
        "$defs": {
            f"n{i}": {
                "type": "object",
                "properties": {f"p{j}": {"$ref": f"#/$defs/n{(i * 7 + j) % 30}"} for j in range(4)},
            }
            for i in range(30)
        },
    },
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("schema", ALLOWED.values(), ids=ALLOWED.keys())
def test_a_large_schema_is_taken(compiler: Compiler, schema: Any) -> None:
    compiler.schema(schema, "response_format")


SAYS = {
    "two that loop": "no JSON text of finite length satisfies it",
    "no end in arrays": "no JSON text of finite length satisfies it",
    "a chain": "has references to more than 200 schemas",
    "a chain of objects": "has references through more than 256 schemas",
    "enums multiplied": "# has more than 2000 combinations",
    "patterns intersected": "# intersects more than 8 patterns",
    "a huge enum": "has more than 20000 values in const and enum",
    "deep arrays": "/items is more than 24 schemas deep",
    "100,000 schemas": "has more than 10000 schemas",
    "1,001 properties": "#/properties has more than 1000 names",
}


@pytest.mark.parametrize("name", SAYS)
def test_a_limit_is_named_before_anything_is_compiled(name: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(SAYS[name])):
        checked(HOSTILE[name], "response_format")
