"""Servers that are started for a test and ended with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from gptoss_mlx.tools.mcp.config import ServerConfig, StdioServer
from gptoss_mlx.tools.mcp.servers import McpServers
from gptoss_mlx.tools.mcp.tool import McpTool
from gptoss_mlx.tools.tool import Outcome

ODD = Path(__file__).with_name("odd_server.py")
LONG = 60.0  # seconds that nothing here takes


class Start(Protocol):
    """Start servers that end with the test."""

    def __call__(self, *configs: ServerConfig, seconds: float = LONG) -> McpServers: ...


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ExitStack() as stack:

        def started(*configs: ServerConfig, seconds: float = LONG) -> McpServers:
            servers = McpServers(configs, start_seconds=seconds)
            return stack.enter_context(closing(servers))

        yield started


def odd(*mode: str, name: str = "odd", timeout: float = LONG, **env: str) -> ServerConfig:
    command = (sys.executable, "-I", "-S", "-X", "utf8", str(ODD), *mode)
    return ServerConfig(name, StdioServer(command, env), timeout)


def call(tool: McpTool, name: str, **arguments: Any) -> Outcome:
    """Call a tool by its server's name for it."""
    return tool.call(f"functions.{tool.name}_{name}", json.dumps(arguments))


def said(tool: McpTool, name: str, **arguments: Any) -> str:
    """What a call that must not fail gives."""
    outcome = call(tool, name, **arguments)
    assert not outcome.failed, outcome.text
    return outcome.text


def names(tool: McpTool) -> list[str]:
    """Of the functions that a tool offers."""
    return [str(offer["function"]["name"]) for offer in tool.offers]  # type: ignore[index]
