"""The file of servers: the forms that other clients write, and each mistake in one line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.errors import McpFileError
from gptoss_mlx.tools.mcp.config import HttpServer, ServerConfig, StdioServer, read_servers

PYTHON = sys.executable


def read(folder: Path, value: object) -> tuple[ServerConfig, ...]:
    path = folder / "mcp.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return read_servers(path)


def one(folder: Path, entry: object) -> ServerConfig:
    (config,) = read(folder, {"mcpServers": {"s": entry}})
    return config


def test_claude_desktop_s_form(tmp_path: Path) -> None:
    """Beside the servers that client's file has settings of its own."""
    entry = {"command": PYTHON, "args": ["-m", "server"], "env": {"KEY": "value"}}
    file = {"globalShortcut": "", "mcpServers": {"files": entry, "more": {"command": PYTHON}}}
    assert read(tmp_path, file) == (
        ServerConfig("files", StdioServer((PYTHON, "-m", "server"), {"KEY": "value"}), 60),
        ServerConfig("more", StdioServer((PYTHON,)), 60),
    )


def test_vs_code_s_and_cursor_s_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    http = {"type": "http", "url": "https://a.b/mcp", "headers": {"X-Key": "Bearer ${env:TOKEN}"}}
    stdio = {
        "type": "stdio",
        "command": PYTHON,
        "env": {"N": 5, "GONE": None},
        "cwd": "${userHome}",
    }
    place = {
        "command": PYTHON,
        "args": ["${workspaceFolder}/x"],
        "timeout": 1500,
        "disabled": False,
    }
    assert read(tmp_path, {"inputs": [], "servers": {"h": http, "s": stdio, "w": place}}) == (
        ServerConfig("h", HttpServer("https://a.b/mcp", {"X-Key": "Bearer secret"})),
        ServerConfig("s", StdioServer((PYTHON,), {"N": "5"}, str(Path.home()))),
        ServerConfig("w", StdioServer((PYTHON, f"{tmp_path}/x")), 1.5),
    )


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${A}", "1"),
        ("${env:A}-${B:-two}", "1-two"),
        ("${B:-}", ""),
        ("${A:-two}", "1"),
        ("$A ${} ${1} {A} ${a.b}", "$A ${} ${1} {A} ${a.b}"),
        ("${${A}}", "${1}"),
    ],
)
def test_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expanded: str
) -> None:
    monkeypatch.setenv("A", "1")
    monkeypatch.delenv("B", raising=False)
    config = one(tmp_path, {"command": PYTHON, "args": [text]})
    assert config.server == StdioServer((PYTHON, expanded))


def test_a_server_that_is_disabled_is_left_out_with_its_mistakes(tmp_path: Path) -> None:
    off = {"command": "no-such-program", "env": {"A": "${NO_SUCH_VARIABLE}"}, "disabled": True}
    assert read(tmp_path, {"mcpServers": {"off": off}}) == ()


def test_a_command_is_found_where_the_server_looks_for_it(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "program"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    env = {"PATH": str(program.parent)}
    assert one(tmp_path, {"command": "program", "env": env}).server == StdioServer(
        ("program",), env
    )
    relative = {"command": "bin/program", "cwd": str(tmp_path)}
    assert isinstance(one(tmp_path, relative).server, StdioServer)
    with pytest.raises(McpFileError, match="command is 'program', but must be a program"):
        one(tmp_path, {"command": "program"})


C = {"command": PYTHON}
U = {"url": "http://localhost:1/mcp"}


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (5, "mcpServers.s is 5, but must be an object"),
        ({**C, "a\nb": 1}, r"s\.'a\\nb' is not understood"),
        ({**C, "env": {"a\nb": []}}, r"s\.env\.'a\\nb' is \[\], but must be a text"),
        ({}, "mcpServers.s has neither command nor url, but must have one of them"),
        ({**C, **U}, "mcpServers.s has both command and url"),
        ({**C, "arg": []}, "mcpServers.s.arg is not understood, only type, command, args, env"),
        (
            {**C, "type": "http"},
            "s.type is 'http', but must be another, since the server has a com",
        ),
        ({**U, "type": "sse"}, "s.type is 'sse', but must be http: streamable HTTP has replaced"),
        ({**U, "type": "ws"}, "s.type is 'ws', but must be stdio, http or streamable-http"),
        ({**U, "type": []}, r"s.type is \[\], but must be stdio"),
        ({"command": ""}, "s.command is '', but must be a program"),
        ({"command": 1}, "s.command is 1, but must be a text"),
        ({"command": "no-such-program"}, "s.command is 'no-such-program', but must be a program"),
        ({**C, "args": "x"}, "s.args is 'x', but must be a list of texts"),
        ({**C, "args": ["x", 5]}, r"s.args\[1\] is 5, but must be a text"),
        ({**C, "args": ["\0"]}, r"s.args\[0\] is '.x00', but must be a text without NUL"),
        ({**C, "args": ["\ud800"]}, r"s.args\[0\] is '.ud800', but must be a text"),
        ({**C, "env": []}, r"s.env is \[\], but must be an object of texts"),
        ({**C, "env": {"A": True}}, "s.env.A is True, but must be a text"),
        ({**C, "env": {"A=B": "x"}}, "s.env: 'A=B' is no variable's name"),
        (
            {**C, "env": {"A": "${NO_SUCH}"}},
            r"s.env.A has \$\{NO_SUCH\}, but the environment has no",
        ),
        (
            {**C, "env": {"A": "${input:key}"}},
            r"s.env.A is '\$\{input:key\}', but must be \$\{env:NAM",
        ),
        ({**C, "cwd": "/no/such"}, "s.cwd is '/no/such', but must be a folder that exists"),
        ({**C, "headers": {}}, "s.headers is for a server with a url"),
        ({**U, "args": []}, "s.args is for a server with a command"),
        ({"url": "localhost:80"}, "s.url is 'localhost:80', but must be an address with http://"),
        ({"url": "http://a:b/"}, "s.url is 'http://a:b/', but must be an address"),
        ({"url": "http://a b/"}, "s.url is 'http://a b/', but must be an address"),
        ({**U, "headers": {"a b": "x"}}, "s.headers: 'a b' is no header in ASCII"),
        ({**U, "headers": {"a": "x\r\nb: c"}}, "s.headers: 'a' is no header in ASCII"),
        ({**C, "timeout": 60}, "s.timeout is 60, but must be milliseconds, 1000 to 86400000"),
        ({**C, "timeout": True}, "s.timeout is True, but must be milliseconds"),
        ({**C, "disabled": "no"}, "s.disabled is 'no', but must be true or false"),
    ],
)
def test_a_mistake_in_a_server_is_one_line(tmp_path: Path, entry: Any, line: str) -> None:
    with pytest.raises(McpFileError, match=line) as caught:
        one(tmp_path, entry)
    assert str(caught.value).startswith(str(tmp_path / "mcp.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list, not a JSON object"),
        ('{"mcpServers": {}, "mcpServers": {}}', "the name 'mcpServers' occurs twice"),
        ('{"mcpServer": {}}', "has no servers, but must have one object mcpServers"),
        ('{"mcpServers": {}, "servers": {}}', "has mcpServers and servers, but must have one"),
        ('{"mcpServers": []}', r"mcpServers is \[\], but must be an object of servers"),
        ('{"mcpServers": {"": {}}}', "has the name '', but a name is of 1 to 64 letters"),
        (
            '{"mcpServers": {"python": {}}}',
            "has the name 'python', but a name .* none of browser, f",
        ),
        ('{"mcpServers": {"a=ask": {}}}', "has the name 'a=ask'"),
        ('{"mcpServers": {"\\u202e": {}}}', "has the name '.u202e'"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(McpFileError, match=line) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(McpFileError, match=r"nowhere\.json: cannot be read: No such file"):
        read_servers(tmp_path / "nowhere.json")


def test_what_a_variable_stood_for_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret\n")
    with pytest.raises(McpFileError, match=r"s.headers: 'a' is no header in ASCII") as caught:
        one(tmp_path, {**U, "headers": {"a": "x${TOKEN}"}})
    assert "secret" not in str(caught.value)
    assert os.environ["TOKEN"] not in str(caught.value)
