"""The tools a person gives: OpenAI function tools, and the builtin ones by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_mlx.errors import MessageError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.schema import clean, normalise
from gptoss_mlx.spec.recipients import BUILTIN, FUNCTIONS

TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True)
class Function:
    """One function tool.

    parameters: a JSON schema, normalised for the prompt; None for no arguments. schema: the same as
    it was given. strict: whether arguments must follow it in everything.
    """

    name: str
    description: str
    parameters: dict[str, Any] | None
    schema: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True)
class Tools:
    functions: tuple[Function, ...] = ()
    builtin: tuple[str, ...] = ()


def read_tools(tools: Sequence[Mapping[str, Any]]) -> Tools:
    """Read OpenAI's function tools, in chat form or in the flat form of the Responses API.

    Chat form is {"type": "function", "function": {...}}. {"type": "browser"} and {"type": "python"}
    name the builtin tools. Raises MessageError.
    """
    functions: dict[str, Function] = {}
    builtin: list[str] = []
    for index, tool in enumerate(tools):
        where = f"tool {index}"
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if isinstance(kind, str) and kind in BUILTIN:
            builtin += [str(kind)] if kind not in builtin else []
            continue
        if kind != "function":
            raise MessageError(f"{where}: type {shown(kind)} is unknown: use function")
        function = _function(where, tool.get("function", tool))
        if function.name in functions:
            raise MessageError(f"{where}: the tool name {shown(function.name)} is used twice")
        functions[function.name] = function
    return Tools(tuple(functions.values()), tuple(builtin))


def recipient_of(where: str, kind: Any, name: Any) -> str:
    """Whom a call of this type and name is for. Raises MessageError.

    A call of a builtin tool has the tool's type, and the name of its recipient: {"type": "browser",
    "function": {"name": "browser.search", ...}}.
    """
    if not isinstance(kind, str) or kind not in BUILTIN:
        return FUNCTIONS + tool_name(where, name)
    if name not in BUILTIN[kind]:
        known = " or ".join(BUILTIN[kind])
        raise MessageError(f"{where}: a call of {kind} has the name {known}, not {shown(name)}")
    return str(name)


def tool_name(where: str, name: Any) -> str:
    """A function's name. Raises MessageError if it is not a valid one."""
    if not isinstance(name, str) or TOOL_NAME.fullmatch(name) is None:
        raise MessageError(
            f"{where}: tool name {shown(name)}:"
            " use 1 to 128 letters, digits, underscores and hyphens"
        )
    return name


def _function(where: str, function: Any) -> Function:
    if not isinstance(function, Mapping):
        raise MessageError(f"{where}: expected an object with a name")
    name = tool_name(where, function.get("name"))
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise MessageError(f"{where} ({name}): the description must be a text")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise MessageError(f"{where} ({name}): parameters must be a JSON schema object")
    schema = None if parameters is None else normalise(parameters)
    # the format writes a function without arguments as `() => any`
    if schema is not None and schema.get("type") == "object" and not schema.get("properties"):
        schema = None
    strict = function.get("strict")
    if not isinstance(strict, bool | None):
        raise MessageError(f"{where} ({name}): strict is {shown(strict)}, not true or false")
    return Function(name, clean(description or ""), schema, parameters, bool(strict))
