"""JSON schemas of tools, rewritten so that Harmony's renderer loses nothing of them.

The renderer knows string enums, oneOf, lists of types, objects and arrays, and writes `any` for
the rest. It prints the names in a list of types as they are, so that {"type": ["null", "5"]} comes
out as `null | 5`: that is how literals and small unions are written. What it renders well by itself
is left as it is. `any` remains only where the schema allows anything, at unresolvable references,
and beyond the limits below.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.encoding import with_whole_characters

MAX_DEPTH = 48  # the renderer reads JSON of at most 128 levels
_MAX_NODES = 4000  # references may expand without end
_MAX_NODE_DEPTH = 24

Schema = dict[str, Any]

_NOTES = ("title", "description", "default", "examples", "nullable")
_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_ALIASES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_ALIASES |= {"list": "array", "dict": "object"}
_TYPE_OF_KEY = {
    "properties": "object",
    "additionalProperties": "object",
    "patternProperties": "object",
    "required": "object",
    "items": "array",
    "prefixItems": "array",
    "minItems": "array",
    "maxItems": "array",
    "pattern": "string",
    "format": "string",
    "minLength": "string",
    "maxLength": "string",
    "minimum": "number",
    "maximum": "number",
    "multipleOf": "number",
}
_DEFINING = {"$ref", "type", "const", "enum", "anyOf", "oneOf", "allOf", "items", "properties"}
_INDEX = re.compile("[0-9]{1,9}")
_ANY_KEY = "[key: string]"
_NULL: Schema = {"type": ["null"]}
_SELF = "\0"  # marks a reference to a schema from inside it; its value is the kind


def clean(value: Any, depth: int = 0) -> Any:
    """A value as plain JSON data.

    Lone surrogates become U+FFFD. Numbers that no double holds become null, and so does what is
    nested deeper than MAX_DEPTH. Other objects become their text.
    """
    if isinstance(value, str):
        return with_whole_characters(str(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 1024 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= MAX_DEPTH:
        return None
    if isinstance(value, Mapping):
        return {_name(key): clean(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(inner, depth + 1) for inner in value]
    return clean(str(value))


def _name(key: Any) -> str:
    return str(clean(key if isinstance(key, str) else shown(key)))


def normalise(schema: Mapping[str, Any]) -> Schema:
    """A schema of the same meaning that the renderer can write. Never raises."""
    root = clean(schema)
    return _Normaliser(root).node(root, (), 0, nullable=False)


class _Normaliser:
    """One pass over one schema; `refs` are the references followed to reach a node."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._nodes = 0

    def node(self, schema: Any, refs: tuple[str, ...], depth: int, *, nullable: bool) -> Schema:
        """The node as the renderer can write it. nullable: whether it heeds that keyword here."""
        if schema is False:
            return {"type": ["never"]}
        self._nodes += 1
        if not isinstance(schema, dict) or depth > _MAX_NODE_DEPTH or self._nodes > _MAX_NODES:
            return {}
        schema, refs = self._resolve(schema, refs, 0)
        result = {**self._shape(schema, refs, depth + 1), **_notes(schema)}
        return _say_null(result, nullable) if result.get("nullable") else result

    def _shape(self, schema: Schema, refs: tuple[str, ...], depth: int) -> Schema:
        if isinstance(schema.get(_SELF), str):
            return {"type": [schema[_SELF]]}
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list) and values:
            return _literals(values)
        for key in ("oneOf", "anyOf"):
            variants = schema.get(key)
            if isinstance(variants, list) and variants:
                return self._union(schema, key, refs, depth)
        kind = _kind(schema)
        if isinstance(kind, list):
            shapes = [self._shape({**schema, "type": name}, refs, depth) for name in kind]
            return _join(shapes, native=False)
        if kind == "array":
            return self._array(schema, refs, depth)
        if kind == "object":
            return self._object(schema, refs, depth)
        if kind == "null":
            return _NULL
        return {"type": kind} if kind else {}

    def _union(self, schema: Schema, key: str, refs: tuple[str, ...], depth: int) -> Schema:
        base = {name: inner for name, inner in schema.items() if name not in (key, *_NOTES)}
        variants: list[Schema] = []
        for variant in schema[key][:_MAX_NODES]:
            if isinstance(variant, dict) and not _DEFINING & variant.keys() and _kind(base):
                continue  # it only says which properties go together
            if isinstance(variant, dict) and _kind(base) and "$ref" not in variant:
                variant = _merge(variant, base)
            variants.append(self.node(variant, refs, depth, nullable=True))
        if not variants:
            return self._shape(base, refs, depth)
        return _join(variants, native=key == "oneOf")

    def _array(self, schema: Schema, refs: tuple[str, ...], depth: int) -> Schema:
        items = schema.get("prefixItems", schema.get("items"))
        if isinstance(items, list) and items:
            texts = [inline(self.node(item, refs, depth, nullable=False)) for item in items]
            if all(text is not None for text in texts):
                return {"type": [f"[{', '.join(map(str, texts))}]"]}
            items = {"anyOf": items}
        if not isinstance(items, dict):
            return {"type": "array"}
        item = self.node(items, refs, depth, nullable=False)
        if not item:
            return {"type": "array"}
        text = inline({key: value for key, value in item.items() if key not in _NOTES})
        if text is not None and " | " in text and "enum" not in item:
            item = {"type": [f"({text})"]}
        return {"type": "array", "items": item}

    def _object(self, schema: Schema, refs: tuple[str, ...], depth: int) -> Schema:
        given = schema.get("properties")
        given = given if isinstance(given, dict) else {}
        properties = {
            name: self.node(inner, refs, depth, nullable=True) for name, inner in given.items()
        }
        required = schema.get("required")
        wanted = required if isinstance(required, list) else []
        known = {name for name in wanted if isinstance(name, str)}
        names = [name for name in given if name in known]
        patterns = schema.get("patternProperties")
        others = list(patterns.values()) if isinstance(patterns, dict) else []
        others.append(schema.get("additionalProperties"))
        other = next((inner for inner in others if isinstance(inner, dict) and inner), None)
        if other is not None:
            properties[_ANY_KEY] = self.node(other, refs, depth, nullable=True)
            names.append(_ANY_KEY)
        if not properties and depth > 1 and schema.get("additionalProperties") is not False:
            return {"type": ["object"]}  # with any keys, where { } would say that it has none
        return {"type": "object", "properties": properties, "required": names}

    def _resolve(
        self, schema: Schema, refs: tuple[str, ...], hops: int
    ) -> tuple[Schema, tuple[str, ...]]:
        """The schema with its $ref and allOf replaced by what they stand for."""
        self._nodes += 1
        ref = schema.get("$ref")
        if isinstance(ref, str):
            own = {key: value for key, value in schema.items() if key != "$ref"}
            target = self._target(ref)
            if ref in refs or hops > _MAX_NODE_DEPTH or self._nodes > _MAX_NODES:
                # a schema inside itself is named by its kind only
                kind = _kind(target)
                return {**own, _SELF: kind if isinstance(kind, str) else "object"}, refs
            return self._resolve(_merge(own, target), (*refs, ref), hops + 1)
        subschemas = schema.get("allOf")
        if isinstance(subschemas, list) and hops <= _MAX_NODE_DEPTH and self._nodes <= _MAX_NODES:
            merged, followed = {k: v for k, v in schema.items() if k != "allOf"}, refs
            for subschema in subschemas:
                if self._nodes > _MAX_NODES:
                    break
                if isinstance(subschema, dict):
                    inner, inner_refs = self._resolve(subschema, refs, hops + 1)
                    inner.pop(_SELF, None)
                    merged, followed = _merge(merged, inner), (*followed, *inner_refs)
            return merged, tuple(dict.fromkeys(followed))
        return dict(schema), refs

    def _target(self, ref: str) -> Schema:
        node: Any = self._root
        path = ref[1:].strip("/") if ref.startswith("#") else "\0"
        for step in path.split("/") if path else ():
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and _INDEX.fullmatch(step) and int(step) < len(node):
                node = node[int(step)]
            else:
                node = node.get(step) if isinstance(node, dict) else None
        return node if isinstance(node, dict) else {}


def inline(schema: Schema) -> str | None:
    """The type's text if it fits in a line without a comment, else None."""
    if "description" in schema or "default" in schema or "oneOf" in schema:
        return None
    kind = schema.get("type")
    text: str | None = "any" if kind is None else None
    if isinstance(kind, list):
        text = " | ".join(kind)
    elif kind == "string":
        text = " | ".join(f'"{value}"' for value in schema.get("enum", ())) or kind
    elif kind in ("number", "integer"):
        text = "number"
    elif kind == "boolean":
        text = "boolean"
    elif kind == "array":
        item = inline(schema["items"]) if "items" in schema else None
        text = "Array<any>" if "items" not in schema else item and f"{item}[]"
    if text and schema.get("nullable") and "null" not in text.split(" | "):
        text += " | null"
    return text


def _notes(schema: Schema) -> Schema:
    notes = {key: schema[key] for key in _NOTES if key in schema}
    return {
        key: value
        for key, value in notes.items()
        if key in ("default", "examples") or isinstance(value, bool if key == "nullable" else str)
    }


def _say_null(schema: Schema, heeded: bool) -> Schema:
    """A nullable schema, written so that the renderer prints null.

    heeded: whether the renderer heeds the keyword nullable in this place.
    """
    bare = {key: value for key, value in schema.items() if key not in _NOTES}
    notes = {key: value for key, value in _notes(schema).items() if key != "nullable"}
    text = inline(bare)
    if text is None:
        return {"oneOf": [bare, _NULL], **notes}
    if "null" in text.split(" | "):
        return {**bare, **notes}
    # the renderer takes the word null anywhere in the type, as in an enum, for the type null
    return schema if heeded and "null" not in text else {"type": [f"{text} | null"], **notes}


def _kind(schema: Schema) -> str | list[str] | None:
    """The type that a schema declares or, failing that, its other keywords imply."""
    kind = schema.get("type")
    names = kind if isinstance(kind, list) else [kind]
    names = [_ALIASES.get(name, name) for name in names if isinstance(name, str)]
    known = [name for name in dict.fromkeys(names) if name in _TYPES]
    if known:
        return known if len(known) > 1 else known[0]
    return next((name for key, name in _TYPE_OF_KEY.items() if key in schema), None)


def _literals(values: list[Any]) -> Schema:
    if all(isinstance(value, str) for value in values):
        return {"type": "string", "enum": values}
    texts = [json.dumps(value, ensure_ascii=False) for value in values]
    return {"type": list(dict.fromkeys(texts))}


def _merge(own: Schema, other: Schema) -> Schema:
    """The two schemas merged; where they differ `own` counts."""
    merged = {**other, **own}
    for key in ("properties", "$defs", "definitions"):
        if isinstance(own.get(key), dict) and isinstance(other.get(key), dict):
            merged[key] = {**other[key], **own[key]}
    if isinstance(own.get("required"), list) and isinstance(other.get("required"), list):
        merged["required"] = [*other["required"], *own["required"]]
    return merged


def _join(variants: list[Schema], *, native: bool) -> Schema:
    """The union of several schemas: in one line if it fits.

    native: keep to oneOf, the renderer's own form, unless null is among them.
    """
    each: dict[str, Schema] = {}
    for variant in variants:
        nested = variant["oneOf"] if variant.keys() == {"oneOf"} else [variant]
        each |= {json.dumps(schema, sort_keys=True): schema for schema in nested}
    flat = list(each.values())
    if len(flat) == 1:
        return flat[0]
    texts = [inline(variant) for variant in flat]
    if all(text is not None for text in texts) and (not native or _NULL in flat):
        names = [name for text in texts for name in str(text).split(" | ")]
        return {"type": list(dict.fromkeys(names))}
    return {"oneOf": flat}
