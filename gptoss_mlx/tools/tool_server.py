"""Servers of tools, which conversations share: each lists its tools, by names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gptoss_mlx.tools.tool import Tool


@dataclass(frozen=True)
class ListedTool:
    """A server's tool. function: what the model calls it. schema: of its arguments, an object.
    hints: what the server says of it, such as `readOnlyHint`."""

    name: str
    function: str
    description: str
    schema: Mapping[str, object]
    hints: Mapping[str, bool] = field(default_factory=dict)

    @property
    def is_read_only(self) -> bool:
        return self.hints.get("readOnlyHint", False)

    @property
    def offer(self) -> Mapping[str, object]:
        """The tool as `Engine.stream` takes it."""
        described = {"description": self.description, "parameters": self.schema}
        return {"type": "function", "function": {"name": self.function, **described}}


@dataclass(frozen=True)
class Listing:
    """What a server lists. error: why it lists nothing."""

    tools: tuple[ListedTool, ...] = ()
    error: str | None = None


class ToolServer(Protocol):
    """May be used by several threads at a time."""

    def listing(self) -> Future[Listing]:
        """The tools that are there now, once a server that is being started has answered or was
        given up."""
        ...

    def function(self, name: str) -> str:
        """What the model calls a tool of this name, be there one or not."""
        ...

    def tool(self, folder: Path) -> Tool:
        """The server's tools for one conversation. folder: of the files that calls give; it is made
        with the first of them."""
        ...

    def close(self) -> None:
        """Let go of the server. Returns at once."""
        ...
