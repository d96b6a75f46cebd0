"""The JSON Schema dialect that can be enforced: keywords of draft 2020-12, with limits on cost.

The compiler of masks passes over keywords it does not know and takes options from inside a schema,
so that every keyword and value is checked before. Its time and its stack are bounded by limits on
the size of a schema (`Limits`) and on its shape (`SchemaGraph`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias
from urllib.parse import unquote

from gptoss_mlx.errors import GrammarError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.control_characters import demands_control, has_control
from gptoss_mlx.harmony.schema_graph import SchemaGraph

MAX_SCHEMAS = 10_000
MAX_DEPTH = 24  # schemas in schemas; the prompt shows no more
MAX_PROPERTIES = 1_000  # of one object: the compiler's time is quadratic in them
MAX_PATTERN_PROPERTIES = 100  # of all objects
MAX_VALUES = 20_000  # in const and enum
MAX_TEXT = 10_000  # characters of a name, a value or a pattern
MAX_COUNT = 100_000  # items, characters or properties that a text must have
MAX_EXACT = 2**53  # numbers beyond it are not exact in a double

ANNOTATIONS = frozenset(
    [
        "$schema",
        "$comment",
        "$anchor",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentMediaType",
        "contentEncoding",
        "contentSchema",
    ]
)
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)

Rule: TypeAlias = Callable[["_Checker", Any, str, int], Any]
"""(checker, value, where it stands, depth) -> the value as plain JSON."""


def checked(schema: Any, name: str) -> Any:
    """The schema as plain JSON, without its annotations. name: what it is for, in errors.

    Raises GrammarError, which names the keyword and its place as a JSON pointer.
    """
    checker = _Checker(name)
    plain = checker.schema(schema, "#", 0)
    checker.graph.check()
    return plain


class _Checker:
    """One pass over one schema."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.graph = SchemaGraph(name)
        self._schemas = self._values = self._patterns = 0

    def fail(self, what: str) -> NoReturn:
        raise GrammarError(f"{self.name}: {what}")

    def schema(self, schema: Any, place: str, depth: int) -> Any:
        self._schemas += 1
        if self._schemas > MAX_SCHEMAS:
            self.fail(f"has more than {MAX_SCHEMAS} schemas, the limit")
        if depth > MAX_DEPTH:
            self.fail(f"{_short(place)} is more than {MAX_DEPTH} schemas deep, the limit")
        if isinstance(schema, bool):
            return self.graph.add(place, schema, depth)
        if not isinstance(schema, Mapping):
            self.fail(f"{_short(place)} is {shown(schema)}, but must be a schema")
        plain: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in ANNOTATIONS or (keyword == "$id" and place == "#"):
                continue
            rule = _RULES.get(keyword) if isinstance(keyword, str) else None
            if rule is None or (keyword == "uniqueItems" and value is not False):
                self.fail(f'"{_word(keyword)}" at {_short(place)} is not supported')
            if keyword != "uniqueItems":
                plain[keyword] = rule(self, value, f"{place}/{keyword}", depth + 1)
        self._distinct(plain, place)
        return self.graph.add(place, plain, depth)

    def _distinct(self, plain: Mapping[str, Any], place: str) -> None:
        """Names that no keyword lists may repeat, so that they cannot be counted."""
        if plain.get("minProperties", 0) > len({*plain.get("required", ())}) + 1:
            self.fail(
                f'"minProperties" at {_short(place)} is not supported above the number of'
                " required properties and one"
            )

    def schemas(self, value: Any, place: str, depth: int) -> list[Any]:
        if not isinstance(value, (list, tuple)) or not value:
            self.fail(f"{_short(place)} must be a list of schemas, and not empty")
        return [self.schema(one, f"{place}/{i}", depth) for i, one in enumerate(value)]

    def named(self, value: Any, place: str, depth: int) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            self.fail(f"{_short(place)} must be an object of schemas")
        if len(value) > MAX_PROPERTIES:
            self.fail(f"{_short(place)} has more than {MAX_PROPERTIES} names, the limit")
        if place.endswith("/patternProperties"):
            self._patterns += len(value)
            if self._patterns > MAX_PATTERN_PROPERTIES:
                self.fail(f"has more than {MAX_PATTERN_PROPERTIES} patternProperties, the limit")
        return {
            self.text(name, place, depth): self.schema(one, f"{place}/{_escaped(name)}", depth)
            for name, one in value.items()
        }

    def text(self, value: Any, place: str, depth: int) -> str:
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            self.fail(f"{_short(place)} has {shown(value)}, no text of at most {MAX_TEXT} letters")
        return value

    def pattern(self, value: Any, place: str, depth: int) -> str:
        text = self.text(value, place, depth)
        if demands_control(text):
            self.fail(f"{_short(place)} is {shown(value)}, with a control character")
        return text

    def names(self, value: Any, place: str, depth: int) -> list[str]:
        if not isinstance(value, (list, tuple)) or len(value) > MAX_PROPERTIES:
            self.fail(f"{_short(place)} must be a list of at most {MAX_PROPERTIES} names")
        return [self.text(name, place, depth) for name in value]

    def types(self, value: Any, place: str, depth: int) -> Any:
        kinds = [value] if isinstance(value, str) else value
        if not isinstance(kinds, (list, tuple)) or not kinds or any(k not in TYPES for k in kinds):
            self.fail(f"{_short(place)} is {shown(value)}, but must be of {', '.join(TYPES)}")
        return value if isinstance(value, str) else list(dict.fromkeys(kinds))

    def format(self, value: Any, place: str, depth: int) -> str:
        if not isinstance(value, str) or value not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            self.fail(f'"format" at {_short(place)} is {shown(value)}, but only {known} are known')
        return value

    def reference(self, value: Any, place: str, depth: int) -> str:
        if not isinstance(value, str) or not value.startswith("#"):
            self.fail(f"{_short(place)} is {shown(value)}, but must point into the schema: #/...")
        self.graph.refer(place.removesuffix("/$ref"), unquote(value))
        return value

    def least(self, value: Any, place: str, depth: int) -> int:
        count = self.most(value, place, depth)
        if count > MAX_COUNT:
            self.fail(f"{_short(place)} is {shown(value)}, above the limit of {MAX_COUNT}")
        return count

    def most(self, value: Any, place: str, depth: int) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(f"{_short(place)} is {shown(value)}, but must be a whole number from 0")
        if not (0 <= value < MAX_EXACT and value == int(value)):
            self.fail(f"{_short(place)} is {shown(value)}, but must be a whole number from 0")
        return min(int(value), 10 * MAX_COUNT)  # no answer is longer

    def number(self, value: Any, place: str, depth: int) -> int | float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(f"{_short(place)} is {shown(value)}, but must be a number")
        if not abs(value) <= MAX_EXACT:  # nor NaN
            self.fail(f"{_short(place)} is {shown(value)}, beyond 2^53, the limit")
        if place.endswith("/multipleOf") and value <= 0:
            self.fail(f"{_short(place)} is {shown(value)}, but must be above 0")
        return value

    def values(self, value: Any, place: str, depth: int) -> list[Any]:
        if not isinstance(value, (list, tuple)) or not value:
            self.fail(f"{_short(place)} must be a list of values, and not empty")
        return [self.value(one, place, depth) for one in value]

    def value(self, value: Any, place: str, depth: int) -> Any:
        """A value in const or enum."""
        self._values += 1
        if self._values > MAX_VALUES:
            self.fail(f"has more than {MAX_VALUES} values in const and enum, the limit")
        if depth > 2 * MAX_DEPTH:
            self.fail(f"{_short(place)} is too deep")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            if has_control(value):
                self.fail(f"{_short(place)} has {shown(value)}, with a control character")
            return self.text(value, place, depth)
        if isinstance(value, Mapping):
            return {
                self.text(name, place, depth): self.value(inner, place, depth + 1)
                for name, inner in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.value(inner, place, depth + 1) for inner in value]
        return self.number(value, place, depth)


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("items", "additionalProperties"), _Checker.schema),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), _Checker.schemas),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _Checker.named),
    **dict.fromkeys(("minItems", "minLength", "minProperties"), _Checker.least),
    **dict.fromkeys(("maxItems", "maxLength", "maxProperties"), _Checker.most),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), _Checker.number),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), _Checker.number),
    "$ref": _Checker.reference,
    "type": _Checker.types,
    "const": _Checker.value,
    "enum": _Checker.values,
    "required": _Checker.names,
    "pattern": _Checker.pattern,
    "format": _Checker.format,
    "uniqueItems": _Checker.value,
}
KEYWORDS = tuple(sorted(_RULES))
"""Those that are enforced; of `uniqueItems` only false."""


def _escaped(name: Any) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


def _short(place: str) -> str:
    """A place for a message: of a long pointer its two ends."""
    text = place if len(place) <= 100 else f"{place[:60]}...{place[-30:]}"
    return text.encode("ascii", "backslashreplace").decode("ascii").replace("\n", "\\n")


def _word(keyword: Any) -> str:
    text = keyword if isinstance(keyword, str) else shown(keyword)
    return _short(text)
