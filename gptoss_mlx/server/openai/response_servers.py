"""The servers of one response: MCP servers and other models, as the model is offered their tools.

A list of tools may change while the response is made; a call of a tool that was listed once goes to
its server all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.containers import Containers
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.openai.mcp_request import AskedServer
from gptoss_mlx.server.openai.output_items import McpToolShown
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.spec.recipients import FUNCTIONS
from gptoss_mlx.tools.approval import Rule
from gptoss_mlx.tools.tool_server import ListedTool, Listing, ToolServer

_RETRY_SECONDS = 5


@dataclass
class ResponseServer:
    """A server that a response may use. rule: the person's, who runs this one. listing: the tools
    that it may call."""

    asked: AskedServer
    server: ToolServer
    rule: Rule
    listing: Listing = field(default_factory=Listing)

    @property
    def label(self) -> str:
        return self.asked.label

    def take(self, listing: Listing) -> None:
        allowed = tuple(tool for tool in listing.tools if self.asked.allowed.takes(tool))
        self.listing = Listing(allowed, listing.error)

    @property
    def offers(self) -> list[JSON]:
        """As the engine takes them; the first says what the client says of the server."""
        offers: list[JSON] = [tool.offer for tool in self.listing.tools]
        if offers and self.asked.description:
            first = offers[0]["function"]
            said = f"Of {self.label}: {self.asked.description}\n{first['description']}".strip()
            offers[0] = {"type": "function", "function": {**first, "description": said}}
        return offers


@dataclass(frozen=True)
class ServerCall:
    """A call of a server's tool. must_ask: whether a person has to agree to it, by the client's
    wish or the rule."""

    server: ResponseServer
    tool: ListedTool

    @property
    def recipient(self) -> str:
        return FUNCTIONS + self.tool.function

    @property
    def must_ask(self) -> bool:
        return self.server.rule == "ask" or self.server.asked.must_ask(self.tool)


class ResponseServers:
    """Those of one response, in the order of the request. Used in one event loop.

    taken: names of functions that are the client's."""

    def __init__(self) -> None:
        self.taken = frozenset[str]()
        self._all: dict[str, ResponseServer] = {}  # by their labels
        self._calls: dict[str, ServerCall] = {}  # by recipients, of all tools listed so far
        self._told: dict[str, object] = {}  # by labels: what the client has read

    @classmethod
    async def open(cls, asked: Sequence[AskedServer], containers: Containers) -> ResponseServers:
        """Find or connect to servers, and list their tools; one that fails lists none, and says
        why. Raises Problem where there are too many connections."""
        servers = cls()
        try:
            for one in asked:
                await servers._add(one, containers)
            await servers.relist()
        except BaseException:
            servers.close()
            raise
        return servers

    async def relist(self) -> None:
        """Read the lists anew. Of two functions of the same name the first one counts."""
        servers = list(self)
        found = [asyncio.wrap_future(one.server.listing()) for one in servers]
        listings = await asyncio.gather(*found)
        functions = set(self.taken)
        for one, listing in zip(servers, listings, strict=True):
            tools = [tool for tool in listing.tools if tool.function not in functions]
            one.take(Listing(tuple(tools), listing.error))
            functions |= {tool.function for tool in one.listing.tools}
            calls = [ServerCall(one, tool) for tool in one.listing.tools]
            self._calls |= {call.recipient: call for call in calls}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[ResponseServer]:
        return iter(self._all.values())

    @property
    def offers(self) -> list[JSON]:
        return [offer for one in self for offer in one.offers]

    def has(self, label: object) -> bool:
        return label in self._all

    def heard(self, items: Sequence[JSON]) -> None:
        """The client has read these items, and need not read the same lists again."""
        for item in items:
            if item["type"] == "mcp_list_tools" and not item.get("error"):
                self._told[item["server_label"]] = item.get("tools")

    def news(self) -> list[tuple[str, Listing]]:
        """The lists that the client has not read, by labels; after this it has."""
        found = []
        for one in self:
            told = one.listing.error or tools_of(one.listing)
            if self._told.get(one.label) != told:
                found.append((one.label, one.listing))
            self._told[one.label] = told
        return found

    def call(self, recipient: str) -> ServerCall | None:
        """The call that a recipient means."""
        return self._calls.get(recipient)

    def named(self, label: str, name: str) -> ServerCall:
        """The call of a tool, which the server need not have any more. Raises Problem."""
        if (found := self._all.get(label)) is None:
            said = f"tools: no server has the label {shown(label)}, of which a call was approved"
            raise Problem(400, said, param="tools")
        function = found.server.function(name)
        call = self.call(FUNCTIONS + function)
        return call or ServerCall(found, ListedTool(name, function, "", {}))

    def recipient(self, label: str, name: str) -> str:
        """Whom the model addresses for a tool, be it there or not."""
        from gptoss_mlx.tools.mcp.names import function_name, prefixes

        found = self._all.get(label)
        if found is not None:
            return FUNCTIONS + found.server.function(name)
        return FUNCTIONS + function_name(prefixes([label])[0], name)

    def chosen(self, choice: Mapping[str, object]) -> list[str]:
        """The functions that a tool choice of the type `mcp` means. Raises Problem."""
        label, name = choice.get("server_label"), choice.get("name")
        found = self._all.get(label) if isinstance(label, str) else None
        tools = () if found is None else found.listing.tools
        functions = [tool.function for tool in tools if name in (None, tool.name)]
        if not functions:
            said = f"tool_choice: there is no tool {shown(name)} of a server {shown(label)}"
            raise Problem(400, said, param="tool_choice")
        return functions

    def close(self) -> None:
        """Let go of them. May be called again."""
        for one in self:
            if one.asked.name is None:
                one.server.close()

    async def _add(self, asked: AskedServer, containers: Containers) -> None:
        kit = containers.kit
        if asked.name is not None:
            server = kit.servers[asked.name]
            self._all[asked.label] = ResponseServer(asked, server, kit.rule(asked.name))
            return
        assert kit.connect is not None, "the request was read with the same toolkit"
        connect = partial(kit.connect, asked.label, asked.url, asked.headers, list(self._all))
        connected = await containers.apart(connect)
        if connected is None:
            said = "too many MCP servers of clients are connected to; try again later"
            raise Problem(503, said, code="queue_full", retry_after=_RETRY_SECONDS)
        self._all[asked.label] = ResponseServer(asked, connected, "allow")


def tools_of(listing: Listing) -> list[McpToolShown]:
    """As clients read them."""
    return [
        {
            "name": tool.name,
            "description": tool.description or None,
            "input_schema": tool.schema,
            "annotations": tool.hints or None,
        }
        for tool in listing.tools
    ]
