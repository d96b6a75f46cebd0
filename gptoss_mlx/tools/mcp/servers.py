"""The servers of a file, on an event loop that has a thread of its own."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack

from anyio.from_thread import start_blocking_portal

from gptoss_mlx.tools.mcp.config import ServerConfig
from gptoss_mlx.tools.mcp.connection import START_SECONDS, Connection
from gptoss_mlx.tools.mcp.names import prefixes
from gptoss_mlx.tools.mcp.result import ImageFolder
from gptoss_mlx.tools.mcp.tool import McpTool


class McpServers:
    """Servers that were started at the same time, and run until `close`.

    tools: one a server. images: of what they give. A server that does not start has no functions
    and is named in a note. progress: takes how many of how many have started. start_seconds: the
    time in which a server has to answer and list its tools, of each of two attempts.
    """

    def __init__(
        self,
        configs: Sequence[ServerConfig],
        progress: Callable[[int, int], None] = lambda done, total: None,
        *,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.images = ImageFolder()
        self._loop = ExitStack()
        portal = self._portal = self._loop.enter_context(start_blocking_portal("asyncio"))
        names = [config.name for config in configs]
        self._connections = [
            portal.call(Connection, config, prefix, start_seconds)
            for config, prefix in zip(configs, prefixes(names), strict=True)
        ]
        self.tools = [
            McpTool(name, connection, portal, self.images)
            for name, connection in zip(names, self._connections, strict=True)
        ]
        for each in self._connections:
            portal.start_task_soon(each.live)
        self._loop.callback(self._end)
        atexit.register(self.close)  # an interpreter that ends would wait for the thread
        try:
            started = [portal.start_task_soon(each.settled) for each in self._connections]
            for done, _ in enumerate(as_completed(started), 1):
                progress(done, len(started))
        except BaseException:
            self.close()
            raise

    def notes(self) -> list[str]:
        """What a person has not been told yet."""
        found = []
        for each in self._connections:
            while each.notes:
                found.append(each.notes.popleft())
        return found

    def close(self) -> None:
        """End the servers and all their processes, which takes some seconds at most."""
        atexit.unregister(self.close)
        self._loop.close()

    def _end(self) -> None:
        for each in self._connections:
            self._portal.call(each.close)
