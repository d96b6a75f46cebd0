"""The arguments of a call, as the model writes them: JSON, now and then of another type than asked.

What can only mean one thing is taken as that: "3" is 3, null is absent. Everything else raises
BrowsingError, whose text says what would have been right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.encoding import with_whole_characters
from gptoss_mlx.tools.browser.source import BrowsingError

Arguments: TypeAlias = Mapping[str, object]

ARGUMENTS_LIMIT = 65536
"""Characters of a call."""

_NAMES = {
    "search": ("query", "topn", "top_n", "source"),
    "open": ("id", "cursor", "loc", "num_lines", "view_source", "source"),
    "find": ("pattern", "cursor"),
}
_EXAMPLES = {
    "search": '{"query": "words to search for"}',
    "open": '{"id": 0, "cursor": 0}',
    "find": '{"pattern": "text to find"}',
}
_MARKED = re.compile(r"\s*(?:【\s*)?([+-]?\d{1,18})(?:†[^】]*】?|】)?\s*", re.ASCII)
"""A whole number, alone or as the id of a link's mark."""


@dataclass(frozen=True)
class SearchCall:
    """topn: results wanted, at least 1."""

    query: str
    topn: int


@dataclass(frozen=True)
class OpenCall:
    """id: a link's number, a URL, or None to stay on the page. Of the numbers, -1 is not given."""

    id: int | str | None
    cursor: int = -1
    loc: int = -1
    num_lines: int = -1
    view_source: bool = False


@dataclass(frozen=True)
class FindCall:
    """pattern: a text, not a regular expression."""

    pattern: str
    cursor: int = -1


Call: TypeAlias = SearchCall | OpenCall | FindCall


def read_call(recipient: str, text: str) -> Call:
    """The call that was written to a recipient such as "browser.open". Raises BrowsingError."""
    function = recipient.removeprefix("browser.")
    if function not in _NAMES:
        known = ", ".join(f"browser.{name}" for name in _NAMES)
        raise BrowsingError(f"Unknown function: {shown(recipient)}. There are {known}.")
    arguments = _read(function, text)
    if function == "search":
        topn = _whole(arguments, "topn" if "topn" in arguments else "top_n", 10)
        return SearchCall(_text(arguments, "query", function), max(1, topn))
    if function == "find":
        pattern = _text(arguments, "pattern", function)
        return FindCall(pattern, _whole(arguments, "cursor", -1))
    return OpenCall(
        id=_id(arguments.get("id")),
        cursor=_whole(arguments, "cursor", -1),
        loc=_whole(arguments, "loc", -1),
        num_lines=_whole(arguments, "num_lines", -1),
        view_source=_flag(arguments, "view_source"),
    )


def _read(function: str, text: str) -> Arguments:
    """The arguments that are given; those that are null are not."""
    if not text.strip():
        return {}
    if len(text) > ARGUMENTS_LIMIT:
        raise BrowsingError(
            f"The arguments have {len(text):,} characters, {ARGUMENTS_LIMIT:,} is the limit."
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = shown(str(error)).strip("'\"")
        raise BrowsingError(
            f"The arguments are not JSON: {why}. Write, for example, {_EXAMPLES[function]}."
        ) from error
    if not isinstance(value, dict):
        raise BrowsingError(
            f"The arguments are {shown(value)}, but must be an object such as"
            f" {_EXAMPLES[function]}."
        )
    unknown = [name for name in value if name not in _NAMES[function]]
    if unknown:
        names = ", ".join(f"`{name}`" for name in _NAMES[function] if name != "top_n")
        raise BrowsingError(
            f"`{function}` has no argument {shown(unknown[0])}. Its arguments are {names}."
        )
    return {name: given for name, given in value.items() if given is not None}


def _text(arguments: Arguments, name: str, function: str) -> str:
    value = arguments.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = shown(value)
    if not isinstance(value, str) or not value.strip():
        what = "is missing" if name not in arguments else f"is {shown(value)}"
        raise BrowsingError(f"`{name}` {what}. Write, for example, {_EXAMPLES[function]}.")
    return with_whole_characters(value)


def _whole(arguments: Arguments, name: str, absent: int) -> int:
    value = arguments.get(name, absent)
    number = _number(value)
    if number is None:
        raise BrowsingError(f"`{name}` should be an integer, not {shown(value)}.")
    return number


def _number(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return max(-(10**18), min(value, 10**18))
    match = _MARKED.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else int(match[1])


def _id(value: object) -> int | str | None:
    number = _number(value)
    if number is not None:
        return number if number >= 0 else None
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BrowsingError(f"`id` should be a link's number or a URL, not {shown(value)}.")
    return with_whole_characters(value.strip())


def _flag(arguments: Arguments, name: str) -> bool:
    value = arguments.get(name, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if not isinstance(value, bool):
        raise BrowsingError(f"`{name}` should be true or false, not {shown(value)}.")
    return value
