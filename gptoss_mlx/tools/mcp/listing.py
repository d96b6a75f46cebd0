"""What a server lists: each tool read by itself, so that one that is wrong does not spoil the rest.

Names and descriptions are a server's words, which the model reads as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.encoding import with_whole_characters
from gptoss_mlx.tools.mcp.names import function_name
from gptoss_mlx.tools.tool_server import ListedTool

MOST_TOOLS = 256
"""Of a server; each takes a place in the prompt."""

DESCRIPTION_LIMIT = 4096
"""Characters of a description; the rest is cut."""

SCHEMA_LIMIT = 65536
"""Characters of a schema, as JSON."""

_NAMED = 3  # tools that are left out
_HINTS = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")


class UnusableToolError(Exception):
    """A tool that nobody can call; the text says why."""


def read_listing(
    listed: Sequence[object], prefix: str
) -> tuple[tuple[ListedTool, ...], str | None]:
    """The tools that can be called, and a text that names the others."""
    found: dict[str, ListedTool] = {}
    faults: list[str] = []
    for value in listed:
        try:
            tool = _tool(value, prefix)
            if tool.function in found:
                raise UnusableToolError("another has its name")
            if len(found) == MOST_TOOLS:
                raise UnusableToolError(f"the server has more than {MOST_TOOLS}")
            found[tool.function] = tool
        except UnusableToolError as error:
            name = value.get("name") if isinstance(value, Mapping) else value
            faults.append(f"{shown(name)} ({error})")
    if not faults:
        return tuple(found.values()), None
    more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return tuple(found.values()), f"tools left out: {', '.join(faults[:_NAMED])}{more}"


def _tool(value: object, prefix: str) -> ListedTool:
    if not isinstance(value, Mapping):
        raise UnusableToolError("it is no object")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise UnusableToolError("it has no name")
    said = next((v for k in ("description", "title") if isinstance(v := value.get(k), str)), "")
    said = with_whole_characters(said)
    if len(said) > DESCRIPTION_LIMIT:
        said = f"{said[:DESCRIPTION_LIMIT]} [cut]"
    function, schema = function_name(prefix, name), _schema(value.get("inputSchema"))
    return ListedTool(name, function, said, schema, _hints(value.get("annotations")))


def _hints(given: object) -> Mapping[str, bool]:
    """What a server says of a tool's effects, which may be wrong."""
    found = given if isinstance(given, Mapping) else {}
    return {key: found[key] for key in _HINTS if isinstance(found.get(key), bool)}


def _schema(given: object) -> Mapping[str, object]:
    """A schema whose root is an object, as arguments are. What the renderer and the grammar make
    of the rest is theirs: they leave open what they cannot express."""
    if given is None or given is True:
        return {"type": "object", "properties": {}}
    if not isinstance(given, Mapping):
        raise UnusableToolError(f"its schema is {shown(given)}")
    kind = given.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise UnusableToolError(f"its arguments are of the type {shown(kind)}, not an object")
    try:
        text = with_whole_characters(json.dumps(given, ensure_ascii=False))
    except RecursionError as error:
        raise UnusableToolError("its schema is nested too deeply") from error
    if len(text) > SCHEMA_LIMIT:
        raise UnusableToolError(f"its schema has more than {SCHEMA_LIMIT} characters")
    schema = {key: value for key, value in json.loads(text).items() if value is not None}
    return {**schema, "type": "object"}
