"""The toolkit: which tools the server runs for its clients, and what makes those of a conversation.

Without it, tools are the client's to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from gptoss_mlx.harmony.encoding import Encoding
from gptoss_mlx.tools.approval import MOST_CALLS, Rule
from gptoss_mlx.tools.tool import Tool
from gptoss_mlx.tools.tool_server import ToolServer

Maker: TypeAlias = Callable[[Path, Encoding], Tool]
"""Makes a tool for one conversation: with a folder of its own, and the model's encoding."""


class Connect(Protocol):
    """Connects to an MCP server that a client names; None where there are too many already.

    others: names of servers that are used together with it.
    """

    def __call__(
        self, name: str, url: str, headers: Mapping[str, str], others: Sequence[str]
    ) -> ToolServer | None: ...


@dataclass(frozen=True)
class Toolkit:
    """makers: of each tool, by its name. servers: of tools, which all conversations share, by their
    names. rules: of tools and servers whose calls are not simply run.

    most_calls: of one response. files: where the conversations' folders are made, to stay; None for
    a place that is removed when the server ends. is_offline: whether the browser reads nothing but
    documents of this machine. addresses: of servers, by their names, as far as they have one.
    connect: None where clients may name no others.
    """

    makers: Mapping[str, Maker] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    most_calls: int = MOST_CALLS
    files: Path | None = None
    is_offline: bool = False
    servers: Mapping[str, ToolServer] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)
    connect: Connect | None = None

    @property
    def names(self) -> list[str]:
        """Of all that a client may ask for."""
        return [*self.makers, *self.servers]

    def rule(self, name: str) -> Rule:
        return self.rules.get(name, "allow")
