"""The tool choice: whether the model may, must or must not call a tool, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_mlx.errors import MessageError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.tools import Function, Tools
from gptoss_mlx.spec.recipients import BUILTIN

MODES = ("auto", "required", "none")


@dataclass(frozen=True)
class ToolChoice:
    """The tools that may be called, and whether one must be."""

    tools: Tools
    must: bool = False


def read_tool_choice(choice: Any, tools: Tools) -> ToolChoice:
    """Read OpenAI's tool_choice; None is "auto".

    A function is named as {"type": "function", "function": {"name": ...}} or, as the Responses API
    does, {"type": "function", "name": ...}; a builtin tool by its type alone, {"type": "python"}.
    {"type": "allowed_tools", "mode": "auto" or "required", "tools": [...]} allows some of them.

    Raises MessageError.
    """
    if choice is None or choice == "auto":
        return ToolChoice(tools)
    if choice == "none":
        return ToolChoice(Tools())
    if choice == "required":
        if not (tools.functions or tools.builtin):
            raise MessageError("tool_choice is 'required', but there are no tools")
        return ToolChoice(tools, must=True)
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        return _allowed(choice, tools)
    if not isinstance(choice, Mapping) or not _is_tool(choice):
        known = ", ".join(MODES)
        raise MessageError(f"tool_choice is {shown(choice)}, but must be {known} or a function")
    return ToolChoice(_chosen([choice], tools), must=True)


def _allowed(choice: Mapping[str, Any], tools: Tools) -> ToolChoice:
    mode, given = choice.get("mode", "auto"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise MessageError(f"tool_choice: the mode is {shown(mode)}, but must be auto or required")
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise MessageError("tool_choice: allowed_tools needs a list of tools")
    named = [tool for tool in given if isinstance(tool, Mapping)]
    return ToolChoice(_chosen(named, tools), must=mode == "required")


def _is_tool(choice: Mapping[str, Any]) -> bool:
    return choice.get("type") in ("function", *BUILTIN)


def _chosen(choices: Sequence[Mapping[str, Any]], tools: Tools) -> Tools:
    """Those of the tools that are named, each once. Raises MessageError."""
    functions: dict[str, Function] = {}
    builtin: dict[str, None] = {}
    for choice in choices:
        kind = choice.get("type")
        if not isinstance(kind, str) or kind not in BUILTIN:
            function = _named(choice.get("function", choice), tools)
            functions[function.name] = function
        elif kind in tools.builtin:
            builtin[kind] = None
        else:
            raise MessageError(f"tool_choice: {kind} is not among the tools")
    return Tools(tuple(functions.values()), tuple(builtin))


def _named(function: Any, tools: Tools) -> Function:
    name = function.get("name") if isinstance(function, Mapping) else None
    for known in tools.functions:
        if known.name == name:
            return known
    raise MessageError(f"tool_choice: the function {shown(name)} is not among the tools")
