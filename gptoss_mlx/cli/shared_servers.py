"""The servers of tools that all conversations of `gptoss-mlx serve` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_mlx.server.toolkit import Connect
    from gptoss_mlx.tools.mcp.config import ServerConfig
    from gptoss_mlx.tools.mcp.servers import McpServers
    from gptoss_mlx.tools.models.endpoint import Endpoint
    from gptoss_mlx.tools.tool_server import ToolServer


class SharedServers:
    """MCP servers, which start meanwhile, and other models.

    by_name: all of them. addresses: of those that have one, by their names. connect: to others that
    a client names; None unless allows_urls. note: tells a person what has become of a server.
    """

    def __init__(
        self,
        configs: Sequence[ServerConfig],
        models: Sequence[Endpoint],
        note: Callable[[str], None],
        *,
        allows_urls: bool,
    ) -> None:
        self.by_name: dict[str, ToolServer] = {}
        self.addresses: dict[str, str] = {}
        self.connect: Connect | None = None
        self._servers: McpServers | None = None
        if configs or allows_urls:
            self._start(configs, note)
        if allows_urls:
            self.connect = self._connect
        if models:
            from gptoss_mlx.tools.models.server import ModelServer

            self.by_name |= {made.name: made for made in map(ModelServer, models)}

    def close(self) -> None:
        """End all processes and connections, which takes some seconds at most."""
        if self._servers is not None:
            self._servers.close()

    def _start(self, configs: Sequence[ServerConfig], note: Callable[[str], None]) -> None:
        from gptoss_mlx.tools.mcp.config import HttpServer
        from gptoss_mlx.tools.mcp.servers import McpServers

        self._servers = McpServers(configs, tell=note, waits=False)
        self.by_name |= {server.name: server for server in self._servers.shared}
        for config in configs:
            if isinstance(config.server, HttpServer):
                self.addresses[config.name] = config.server.url

    def _connect(
        self, name: str, url: str, headers: Mapping[str, str], others: Sequence[str]
    ) -> ToolServer | None:
        from gptoss_mlx.tools.mcp.config import HttpServer, ServerConfig

        assert self._servers is not None, "it is started where URLs are allowed"
        server = HttpServer(url, headers, is_foreign=True)
        return self._servers.connect(ServerConfig(name, server), others)
