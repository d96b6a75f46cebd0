"""The tools of a response: functions and custom tools, as the model is offered them and calls them.

A custom tool takes free text. The model is offered it as a function of one text, `input`; a grammar
of the text stands in its description and is not enforced. Tools in a namespace are functions as
well. All that OpenAI's own servers would run is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.problems import Problem

_FREE_TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
_FUNCTION_KEYS = ("description", "parameters", "strict")


@dataclass(frozen=True)
class NamedTool:
    """A tool by the names that the client knows. is_custom: whether it takes free text."""

    name: str
    namespace: str | None = None
    is_custom: bool = False

    @property
    def key(self) -> str:
        return self.name if self.namespace is None else f"{self.namespace}.{self.name}"


class Toolbox:
    """The tools of one request. functions: as the engine takes them."""

    def __init__(self, tools: Sequence[JSON] | None) -> None:
        self._named: dict[str, NamedTool] = {}
        given: dict[str, JSON] = {}  # one that is named twice counts as it was said last
        for named, tool in _flat(tools or ()):
            self._named[named.key] = named
            given[named.key] = tool
        self._aliases = Aliases(given)
        self.functions = [self._function(key, tool) for key, tool in given.items()]

    def called(self, shown: str) -> NamedTool:
        """The tool that the model calls by a name."""
        original = self._aliases.original(shown)
        return self._named.get(original, NamedTool(original))

    def alias(self, item: JSON) -> str:
        """The model's name for the tool of a call in the history."""
        return self._aliases.shown(_named(item).key)

    def choice(self, given: str | JSON | None) -> str | JSON | None:
        """A tool choice as the engine takes it. Raises Problem."""
        if given is None or isinstance(given, str):
            # A choice among tools of which none can be called is none.
            return None if not self.functions and given in ("auto", "none") else given
        if given.get("type") != "allowed_tools":
            return self._chosen(given)
        tools = given.get("tools")
        if not isinstance(tools, list):
            raise Problem(400, "tool_choice: allowed_tools needs a list", param="tool_choice")
        tools = [tool for tool in tools if _is_callable(tool)]
        if not tools and given.get("mode") != "required":
            return "none"
        return {**given, "tools": [self._chosen(tool) for tool in tools]}

    def _chosen(self, choice: JSON) -> JSON:
        if not _is_callable(choice):
            kind = shown(choice.get("type"))
            raise Problem(
                400, f"tool_choice: a tool of type {kind} cannot be chosen", param="tool_choice"
            )
        return {"type": "function", "name": self._aliases.shown(_named(_plain(choice)).key)}

    def _function(self, key: str, tool: JSON) -> JSON:
        function = {name: tool[name] for name in _FUNCTION_KEYS if tool.get(name) is not None}
        if self._named[key].is_custom:
            function = {"parameters": _FREE_TEXT, "description": _described(tool)}
        return {"type": "function", "function": {"name": self._aliases.shown(key), **function}}


def echoed(tool: JSON) -> JSON:
    """A tool, or a choice of one, in the flat form that clients of this API read."""
    return _plain(tool)


def _plain(tool: JSON) -> JSON:
    function = tool.get("function")
    return {"type": "function", **function} if isinstance(function, Mapping) else tool


def _flat(tools: Sequence[JSON], namespace: str | None = None) -> Iterator[tuple[NamedTool, JSON]]:
    for tool in map(_plain, tools):
        inner = tool.get("tools")
        if tool.get("type") == "namespace" and isinstance(inner, list):
            yield from _flat([t for t in inner if isinstance(t, Mapping)], str(tool.get("name")))
        elif _is_callable(tool):
            yield _named({"namespace": namespace, **tool}), tool


def _is_callable(tool: Any) -> bool:
    return isinstance(tool, Mapping) and tool.get("type") in ("function", "custom")


def _named(tool: JSON) -> NamedTool:
    """The names of a tool or of a call."""
    space = tool.get("namespace")
    is_custom = tool.get("type") in ("custom", "custom_tool_call")
    return NamedTool(str(tool.get("name")), space if isinstance(space, str) else None, is_custom)


def _described(tool: JSON) -> str:
    said, form = tool.get("description") or "", tool.get("format")
    if not isinstance(said, str):
        raise Problem(400, f"tools: a description is {shown(said)}, but must be a text")
    if isinstance(form, Mapping) and isinstance(form.get("definition"), str):
        said += f"\n\nThe input follows this {form.get('syntax', '')} grammar:\n"
        said += form["definition"]
    return said.strip()
