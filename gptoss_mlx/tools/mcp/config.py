"""The file that names MCP servers, in the form of Claude Desktop, Cursor and VS Code.

Every mistake in it raises McpFileError, which names the file, the key and what would be right. What
a variable stood for is never shown, since it may be a secret.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard
from urllib.parse import urlsplit

from gptoss_mlx.errors import CheckpointError, McpFileError
from gptoss_mlx.files.jsonfile import JSON_LIMIT, parse_json, shown
from gptoss_mlx.files.regular import read_regular
from gptoss_mlx.harmony.encoding import with_whole_characters
from gptoss_mlx.spec.recipients import BUILTIN, FUNCTIONS

CALL_SECONDS = 60.0
"""The time of a call, where the file says nothing else."""

_SECTIONS = ("mcpServers", "servers")
_KINDS = {
    "stdio": "command",
    "http": "url",
    "streamable-http": "url",
    "streamableHttp": "url",
    "streamable_http": "url",
}
_UNDERSTOOD = ("type", "command", "args", "env", "cwd", "url", "headers", "timeout", "disabled")
_OWNERS = {"args": "command", "env": "command", "cwd": "command", "headers": "url"}
_OF_OTHERS = ("alwaysAllow", "autoApprove", "description", "dev", "gallery", "icon", "version")
"""Keys of other clients that change nothing of what is run."""

_VARIABLE = re.compile(
    r"\$\{(?:env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\}"
    r"|\$\{(?P<asked>(?:input|command|config):[^}]*)\}"
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_SHORTEST, _LONGEST = 1000, 86_400_000  # milliseconds
_NAME_LENGTH = 64
_SECRET = re.compile("auth|cookie|key|password|secret|token", re.IGNORECASE)  # in a header's name
_SECRET_LENGTH = 8
_HIDDEN = "[hidden]"
_NAME = re.compile(r"[\w@/.-](?:[\w@/. -]*[\w@/.-])?")
_TAKEN = {*BUILTIN, FUNCTIONS.rstrip(".")}  # names that rules and recipients have already
_PLAIN_KEY = re.compile(r"[\w./@ -]{1,80}")


@dataclass(frozen=True)
class StdioServer:
    """A program, spoken with through its stdin and stdout. env: beside the few variables that a
    server gets of ours. cwd: where it runs, None for the current folder."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None


@dataclass(frozen=True)
class HttpServer:
    """A server at an address, spoken with by streamable HTTP. headers: sent with each request.
    is_foreign: whether a stranger has named it, so that only public addresses are connected to."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_foreign: bool = False

    def hide(self, text: str) -> str:
        """The text without the secrets of the headers, which a server may quote."""
        for name, value in self.headers.items():
            for secret in (value, value.rpartition(" ")[2]):  # with and without "Bearer"
                if _SECRET.search(name) and len(secret) >= _SECRET_LENGTH:
                    text = text.replace(secret, _HIDDEN)
        return text


@dataclass(frozen=True)
class ServerConfig:
    """One server of a file. timeout: seconds of a call."""

    name: str
    server: StdioServer | HttpServer
    timeout: float = CALL_SECONDS


def read_servers(path: Path) -> tuple[ServerConfig, ...]:
    """The servers that a file names, but for those it disables. Raises McpFileError."""
    try:
        data = read_regular(path, JSON_LIMIT)
        value = parse_json(data.removeprefix(b"\xef\xbb\xbf"), str(path))
    except OSError as error:
        raise McpFileError(f"{path}: cannot be read: {error.strerror}") from error
    except CheckpointError as error:
        raise McpFileError(str(error)) from error
    sections = [name for name in _SECTIONS if name in value]
    if len(sections) != 1:
        raise McpFileError(
            f"{path}: has {' and '.join(sections) or 'no servers'}, but must have one object"
            " mcpServers (VS Code: servers)"
        )
    servers = value[sections[0]]
    if not isinstance(servers, dict):
        raise McpFileError(
            f"{path}: {sections[0]} is {shown(servers)}, but must be an object of servers"
        )
    found = []
    for name, entry in servers.items():
        where = f"{path}: {sections[0]}"
        if name in _TAKEN or len(name) > _NAME_LENGTH or _NAME.fullmatch(name) is None:
            raise McpFileError(
                f"{where} has the name {shown(name)}, but a name is of 1 to {_NAME_LENGTH} letters,"
                f" digits, spaces and -_.@/, and none of {', '.join(sorted(_TAKEN))}"
            )
        if not isinstance(entry, dict):
            raise McpFileError(f"{where}.{name} is {shown(entry)}, but must be an object")
        if (config := _Entry(f"{where}.{name}", entry).read(name)) is not None:
            found.append(config)
    return tuple(found)


def is_address(url: str) -> bool:
    """Whether a text is the address of a server."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its port is no number, or an address is open
        is_url = False
    return is_url and url.isprintable() and " " not in url


def is_header(name: str, value: str) -> bool:
    """Whether a header can be sent."""
    return bool(_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value))


class _Entry:
    """What the file says of one server. where: the file and the key."""

    def __init__(self, where: str, values: Mapping[str, object]) -> None:
        self._where, self._values = where, values

    def read(self, name: str) -> ServerConfig | None:
        """None for a server that is disabled; what else it says is not looked at then."""
        for key in self._values:
            if key not in _UNDERSTOOD + _OF_OTHERS:
                known = ", ".join(_UNDERSTOOD)
                raise McpFileError(f"{self._where}.{_key(key)} is not understood, only {known}")
        disabled = self._values.get("disabled", False)
        if not isinstance(disabled, bool):
            raise self._wrong("disabled", disabled, "true or false")
        if disabled:
            return None
        server = self._stdio() if self._kind() == "command" else self._http()
        return ServerConfig(name, server, self._timeout())

    def _kind(self) -> str:
        """The key that says where the server is: command or url."""
        given = [key for key in ("command", "url") if key in self._values]
        if len(given) != 1:
            has = "both command and url" if given else "neither command nor url"
            raise McpFileError(f"{self._where} has {has}, but must have one of them")
        kind = self._values.get("type")
        if kind == "sse":
            raise self._wrong("type", kind, "http: streamable HTTP has replaced that transport")
        if kind is not None and (not isinstance(kind, str) or kind not in _KINDS):
            raise self._wrong("type", kind, "stdio, http or streamable-http")
        if isinstance(kind, str) and _KINDS[kind] != given[0]:
            raise self._wrong("type", kind, f"another, since the server has a {given[0]}")
        for key in self._values:
            if (owner := _OWNERS.get(key, given[0])) != given[0]:
                raise McpFileError(f"{self._where}.{key} is for a server with a {owner}")
        return given[0]

    def _stdio(self) -> StdioServer:
        command = self._text("command", self._values["command"])
        args = self._values.get("args", [])
        if not isinstance(args, list):
            raise self._wrong("args", args, "a list of texts")
        given = [self._text(f"args[{i}]", value) for i, value in enumerate(args)]
        env = self._table("env", _as_variable)
        for name in env:
            if not name or "=" in name or "\0" in name:
                raise McpFileError(f"{self._where}.env: {shown(name)} is no variable's name")
        cwd = self._text("cwd", self._values["cwd"]) if "cwd" in self._values else None
        if cwd is not None and not os.path.isdir(cwd):
            raise self._wrong("cwd", self._values["cwd"], "a folder that exists")
        place = os.path.join(cwd or "", command) if os.sep in command else command
        if shutil.which(place, path=env.get("PATH", os.environ.get("PATH"))) is None:
            raise self._wrong("command", self._values["command"], "a program, by its path or name")
        return StdioServer((command, *given), env, cwd)

    def _http(self) -> HttpServer:
        url = self._text("url", self._values["url"])
        if not is_address(url):
            raise self._wrong("url", self._values["url"], "an address with http:// or https://")
        headers = self._table("headers")
        for name, value in headers.items():
            if not is_header(name, value):
                raise McpFileError(f"{self._where}.headers: {shown(name)} is no header in ASCII")
        return HttpServer(url, headers)

    def _timeout(self) -> float:
        value = self._values.get("timeout", CALL_SECONDS * 1000)
        if not _is_number(value) or not _SHORTEST <= value <= _LONGEST:
            raise self._wrong("timeout", value, f"milliseconds, {_SHORTEST} to {_LONGEST}")
        return value / 1000

    def _table(
        self, key: str, read: Callable[[object], object] = lambda value: value
    ) -> dict[str, str]:
        """An object of texts; null leaves one out."""
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object of texts")
        kept = {name: read(inner) for name, inner in value.items() if inner is not None}
        return {name: self._text(f"{key}.{_key(name)}", inner) for name, inner in kept.items()}

    def _text(self, key: str, value: object) -> str:
        """A text with its variables replaced."""
        if not isinstance(value, str) or with_whole_characters(value) != value:
            raise self._wrong(key, value, "a text")
        text = _VARIABLE.sub(lambda match: self._variable(key, match), value)
        if "\0" in text:
            raise self._wrong(key, value, "a text without NUL")
        return text

    def _variable(self, key: str, match: re.Match[str]) -> str:
        if match["asked"]:
            raise self._wrong(
                key, match[0], "${env:NAME} or a text: nobody is asked for a value here"
            )
        places = {"userHome": str(Path.home()), "workspaceFolder": os.getcwd()}
        value = os.environ.get(match["name"], places.get(match["name"]))
        if match["default"] is not None:
            return value or match["default"][2:]
        if value is None:
            raise McpFileError(
                f"{self._where}.{key} has {match[0][:80]}, but the environment has no"
                f" {match['name'][:80]}; ${{NAME:-text}} has a text for that case"
            )
        return value

    def _wrong(self, key: str, value: object, right: str) -> McpFileError:
        return McpFileError(f"{self._where}.{key} is {shown(value)}, but must be {right}")


def _key(name: str) -> str:
    """A key of the file as it can stand in a line."""
    return name if _PLAIN_KEY.fullmatch(name) else shown(name)


def _as_variable(value: object) -> object:
    """VS Code takes numbers for variables as well."""
    return str(value) if _is_number(value) else value


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
