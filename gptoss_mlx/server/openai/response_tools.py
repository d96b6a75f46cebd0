"""The tools of a response: functions and custom tools, as the model is offered them and calls them.

A custom tool takes free text. The model is offered it as a function of one text, `input`; a grammar
of the text stands in its description and is not enforced. Tools in a namespace are functions as
well. What OpenAI's own servers would run is run by this one where it has it, else left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.openai.mcp_request import without_secrets
from gptoss_mlx.server.openai.response_servers import ResponseServers
from gptoss_mlx.server.openai.server_tools import STANDS_IN, container_of, stand_in
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.toolkit import Toolkit
from gptoss_mlx.spec.recipients import FUNCTIONS

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
    """The tools of one request. functions: as the engine takes them. served: names of those that
    the server runs; container: the id of the one that they are to run in, if one is named. servers:
    of further tools.

    Raises Problem.
    """

    def __init__(
        self,
        tools: Sequence[JSON] | None,
        kit: Toolkit | None = None,
        servers: ResponseServers | None = None,
    ) -> None:
        self.servers = ResponseServers() if servers is None else servers
        self.served: list[str] = []
        self.container: str | None = None
        self._named: dict[str, NamedTool] = {}
        given: dict[str, JSON] = {}  # one that is named twice counts as it was said last
        for named, tool in _flat(tools or ()):
            self._named[named.key] = named
            given[named.key] = tool
        for tool in tools or ():
            name = stand_in(tool, kit or Toolkit(), has_own=bool(given))
            if name is not None and name not in self.served:
                self.served.append(name)
            if name is not None:
                self.container = container_of(tool) or self.container
        taken = (offer["function"]["name"] for offer in self.servers.offers)
        self._aliases = Aliases(given, taken)
        self.functions = [self._function(key, tool) for key, tool in given.items()]
        self.servers.taken = frozenset(self._aliases.shown(key) for key in given)

    @property
    def offered(self) -> list[JSON]:
        """All of them as the engine takes them."""
        served = ({"type": name} for name in self.served)
        return [*self.functions, *self.servers.offers, *served]

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
            return None if not self.offered and given in ("auto", "none") else given
        if given.get("type") != "allowed_tools":
            return self._chosen(given)
        tools = given.get("tools")
        if not isinstance(tools, list):
            raise Problem(400, "tool_choice: allowed_tools needs a list", param="tool_choice")
        tools = [tool for tool in tools if self._can_choose(tool)]
        if not tools and given.get("mode") != "required":
            return "none"
        return {**given, "tools": [one for tool in tools for one in self._all_chosen(tool)]}

    def later_choice(self, choice: str | JSON | None, may_call: bool) -> str | JSON | None:
        """The choice, as the engine takes it, after a call that the server has run: nothing has to
        be called any more. may_call: whether the server may run another."""
        some = None
        if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
            some = choice["tools"]
        if may_call and some is None:
            return None
        tools = self.offered if some is None else some
        allowed = [tool for tool in tools if may_call or self._is_clients(tool)]
        return {"type": "allowed_tools", "mode": "auto", "tools": allowed} if allowed else "none"

    def _can_choose(self, tool: Any) -> bool:
        if _is_mcp(tool):
            return self.servers.has(tool.get("server_label"))
        return _is_callable(tool) or self._stand_in(tool) is not None

    def _stand_in(self, tool: Any) -> str | None:
        """The server's tool that is chosen by its type."""
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        name = STANDS_IN.get(kind) if isinstance(kind, str) else None
        return name if name in self.served else None

    def _is_clients(self, offer: JSON) -> bool:
        """Whether a tool, as the engine takes it, is the client's to run."""
        function = offer.get("function", offer)
        is_function = offer["type"] == "function"
        return is_function and self.servers.call(FUNCTIONS + str(function.get("name"))) is None

    def _all_chosen(self, choice: JSON) -> list[JSON]:
        """A choice, which may be of all tools of a server. Raises Problem."""
        if not _is_mcp(choice):
            return [self._chosen(choice)]
        return [{"type": "function", "name": name} for name in self.servers.chosen(choice)]

    def _chosen(self, choice: JSON) -> JSON:
        if _is_mcp(choice):
            tools = self._all_chosen(choice)
            one_of = {"type": "allowed_tools", "mode": "required", "tools": tools}
            return tools[0] if len(tools) == 1 else one_of
        if (name := self._stand_in(choice)) is not None:
            return {"type": name}
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
    return without_secrets(_plain(tool))


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


def _is_mcp(tool: Any) -> bool:
    return isinstance(tool, Mapping) and tool.get("type") == "mcp"


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
