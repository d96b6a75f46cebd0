"""The tools of type `mcp` in a request: which server each means, which of its tools may be called,
and of which a person is asked first.

A server is one that the person who runs this one has named, or an address of the client's where
that is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.toolkit import Toolkit
from gptoss_mlx.tools.tool_server import ListedTool

SECRETS = ("authorization", "headers")
"""Fields that are neither kept nor given back."""

_LABEL_LENGTH = 64
_FILTER = ("tool_names", "read_only")
_ELSEWHERE = ("connector_id", "tunnel_id")
_KNOWN_SERVERS = 8  # that an error names


@dataclass(frozen=True)
class ToolFilter:
    """Some of a server's tools. names: None for any name."""

    names: frozenset[str] | None = None
    read_only: bool | None = None

    def takes(self, tool: ListedTool) -> bool:
        is_named = self.names is None or tool.name in self.names
        return is_named and self.read_only in (None, tool.is_read_only)


@dataclass(frozen=True)
class AskedServer:
    """A server that a client asks for. name: of the toolkit's server; None for one at `url`.

    always, never: tools of which the client wants a person to be asked, and not to be; in doubt a
    person is asked.
    """

    label: str
    name: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    description: str = ""
    allowed: ToolFilter = ToolFilter()
    always: ToolFilter | None = None
    never: ToolFilter | None = None

    def must_ask(self, tool: ListedTool) -> bool:
        if self.always is not None and self.always.takes(tool):
            return True
        return self.never is None or not self.never.takes(tool)


def asked_servers(tools: Sequence[JSON], kit: Toolkit) -> list[AskedServer]:
    """The servers of a request. Raises Problem."""
    found: dict[str, AskedServer] = {}
    for index, tool in enumerate(tools):
        if tool.get("type") != "mcp":
            continue
        server = _Reader(f"tools.{index}", tool, kit).read()
        if server.label in found:
            raise _wrong(f"tools.{index}.server_label", server.label, "used once")
        found[server.label] = server
    return list(found.values())


def without_secrets(tool: JSON) -> JSON:
    """A tool as it is given back."""
    if tool.get("type") != "mcp":
        return tool
    return {key: value for key, value in tool.items() if key not in SECRETS}


class _Reader:
    """Reads one tool. where: its place in the request."""

    def __init__(self, where: str, tool: JSON, kit: Toolkit) -> None:
        self._where, self._kit = where, kit
        self._tool = {key: value for key, value in tool.items() if value is not None}

    def read(self) -> AskedServer:
        for key in _ELSEWHERE:
            if key in self._tool:
                said = f"{self._where}.{key} is not supported: use server_label or server_url"
                raise Problem(400, said, param="tools")
        label = self._text("server_label")
        if not 0 < len(label) <= _LABEL_LENGTH:
            raise _wrong(f"{self._where}.server_label", label, f"1 to {_LABEL_LENGTH} characters")
        url, headers = self._text("server_url"), self._headers()
        name = self._server(label, url)
        if name is not None and headers:
            said = f"{self._where}: headers and authorization of {shown(name)} are this server's"
            raise Problem(400, f"{said} own: leave them out", param="tools")
        if name is None:
            self._check(url, headers)
        always, never = self._approval()
        return AskedServer(
            label,
            name,
            url,
            headers,
            self._text("server_description"),
            self._filter("allowed_tools", self._tool.get("allowed_tools")) or ToolFilter(),
            always,
            never,
        )

    def _server(self, label: str, url: str) -> str | None:
        """The toolkit's server that is meant; None for one at the URL. Raises Problem."""
        kit = self._kit
        names = [name for name, address in kit.addresses.items() if address == url]
        if label in kit.servers and (not url or label in names):
            return label
        if url and names:
            return names[0]
        if label in kit.servers:
            said = f"{self._where}: {shown(label)} is a server of this machine, at no such address"
            raise Problem(400, said, param="tools")
        if not url:
            known = ", ".join(list(kit.servers)[:_KNOWN_SERVERS]) or "none"
            said = f"{self._where}: no server is called {shown(label)}; there are: {known}"
            raise Problem(400, said, code="tool_not_available", param="tools")
        if kit.connect is None:
            said = f"{self._where}: the server_url is none that this server was started with:"
            said += " name it in its --mcp FILE, or start it with --allow-mcp-urls"
            raise Problem(400, said, code="tool_not_available", param="tools")
        return None

    def _check(self, url: str, headers: Mapping[str, str]) -> None:
        from gptoss_mlx.tools.mcp.config import is_address, is_header

        if not is_address(url):
            raise _wrong(f"{self._where}.server_url", url, "an address with https:// or http://")
        if headers and not url.startswith("https:"):
            said = f"{self._where}: headers and authorization go to https:// alone"
            raise Problem(400, said, param="tools")
        for name, value in headers.items():
            if not is_header(name, value):
                raise _wrong(f"{self._where}.headers", name, "the name of a header in ASCII")

    def _headers(self) -> dict[str, str]:
        """What is wrong is not quoted."""
        given = self._tool.get("headers", {})
        if not isinstance(given, Mapping) or not all(isinstance(v, str) for v in given.values()):
            raise Problem(400, f"{self._where}.headers must be an object of texts", param="tools")
        token = self._tool.get("authorization", "")
        if not isinstance(token, str):
            raise Problem(400, f"{self._where}.authorization must be a text", param="tools")
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        plain = {k: v for k, v in given.items() if not token or k.lower() != "authorization"}
        return {**plain, **bearer}

    def _approval(self) -> tuple[ToolFilter | None, ToolFilter | None]:
        """The tools of which a person is always asked, and never."""
        given, where = self._tool.get("require_approval", "always"), "require_approval"
        if given in ("always", "never"):
            return (ToolFilter(), None) if given == "always" else (None, ToolFilter())
        if not isinstance(given, Mapping) or not set(given) <= {"always", "never"}:
            must = "always, never or an object of them"
            raise _wrong(f"{self._where}.{where}", given, must)
        always = self._filter(f"{where}.always", given.get("always"))
        return always, self._filter(f"{where}.never", given.get("never"))

    def _filter(self, key: str, given: Any) -> ToolFilter | None:
        if given is None:
            return None
        if isinstance(given, list):
            given = {"tool_names": given}
        if not isinstance(given, Mapping) or not set(given) <= set(_FILTER):
            must = "a list of names, or an object of tool_names and read_only"
            raise _wrong(f"{self._where}.{key}", given, must)
        names, read_only = given.get("tool_names"), given.get("read_only")
        if names is not None and not _are_texts(names):
            raise _wrong(f"{self._where}.{key}", names, "a list of names")
        if not isinstance(read_only, bool | None):
            raise _wrong(f"{self._where}.{key}.read_only", read_only, "true or false")
        return ToolFilter(None if names is None else frozenset(names), read_only)

    def _text(self, key: str) -> str:
        value = self._tool.get(key, "")
        if not isinstance(value, str):
            raise _wrong(f"{self._where}.{key}", value, "a text")
        return value


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _wrong(where: str, value: object, must: str) -> Problem:
    return Problem(400, f"{where} is {shown(value)}, but must be {must}", param="tools")
