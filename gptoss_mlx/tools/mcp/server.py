"""A server that several conversations share."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from anyio.from_thread import BlockingPortal

from gptoss_mlx.tools.mcp.connection import Connection
from gptoss_mlx.tools.mcp.names import function_name
from gptoss_mlx.tools.mcp.result import ImageFolder
from gptoss_mlx.tools.mcp.tool import McpTool
from gptoss_mlx.tools.tool_server import Listing


class McpServer:
    """A connection, as `ToolServer`. portal: to the loop that it runs in. living: ends with the
    connection, if that is to end before the others of the file."""

    def __init__(
        self,
        name: str,
        connection: Connection,
        portal: BlockingPortal,
        living: Future[None] | None = None,
    ) -> None:
        self.name = name
        self._connection, self._portal, self._living = connection, portal, living

    @property
    def has_ended(self) -> bool:
        """Whether `close` was called, and nothing of the connection is left."""
        return self._living is not None and self._living.done()

    def listing(self) -> Future[Listing]:
        return self._portal.start_task_soon(self._connection.listing)

    def function(self, name: str) -> str:
        return function_name(self._connection.prefix, name)

    def tool(self, folder: Path) -> McpTool:
        return McpTool(self.name, self._connection, self._portal, ImageFolder(folder))

    def close(self) -> None:
        """End a connection that is none of the file's."""
        if self._living is not None and not self._living.done():
            self._portal.start_task_soon(self._connection.close)
