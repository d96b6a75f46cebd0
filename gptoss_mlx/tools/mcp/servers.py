"""The servers of a file, on an event loop that has a thread of its own, and others beside them."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack
from threading import Lock

from anyio.from_thread import start_blocking_portal

from gptoss_mlx.tools.mcp.config import ServerConfig
from gptoss_mlx.tools.mcp.connection import START_SECONDS, Connection
from gptoss_mlx.tools.mcp.names import prefixes
from gptoss_mlx.tools.mcp.result import ImageFolder
from gptoss_mlx.tools.mcp.server import McpServer
from gptoss_mlx.tools.mcp.tool import McpTool

MOST_GUESTS = 16
"""Servers that are connected to beside those of the file."""

GUEST_SECONDS = 15.0
"""The time in which such a server has to answer and to list its tools, of each of two attempts."""


class McpServers:
    """Servers that were started at the same time, and run until `close`.

    tools: one a server, for one conversation, whose images are `images`. shared: the servers, for
    many conversations. A server that does not start has no functions and is named in a note.
    progress: takes how many of how many have started. start_seconds: the time in which a server has
    to answer and list its tools, of each of two attempts. tell: takes notes at once; without it
    they are kept for `notes`. waits: until all have started.
    """

    def __init__(
        self,
        configs: Sequence[ServerConfig],
        progress: Callable[[int, int], None] = lambda done, total: None,
        *,
        start_seconds: float = START_SECONDS,
        tell: Callable[[str], None] | None = None,
        waits: bool = True,
    ) -> None:
        self.images = ImageFolder()
        self._loop = ExitStack()
        portal = self._portal = self._loop.enter_context(start_blocking_portal("asyncio"))
        names = [config.name for config in configs]
        self._connections = [
            portal.call(Connection, config, prefix, start_seconds, tell)
            for config, prefix in zip(configs, prefixes(names), strict=True)
        ]
        self.tools = [
            McpTool(name, connection, portal, self.images)
            for name, connection in zip(names, self._connections, strict=True)
        ]
        self.shared = [
            McpServer(name, connection, portal)
            for name, connection in zip(names, self._connections, strict=True)
        ]
        self._guests, self._lock = list[McpServer](), Lock()
        for each in self._connections:
            portal.start_task_soon(each.live)
        self._loop.callback(self._end)
        atexit.register(self.close)  # an interpreter that ends would wait for the thread
        if not waits:
            return
        try:
            started = [portal.start_task_soon(each.settled) for each in self._connections]
            for done, _ in enumerate(as_completed(started), 1):
                progress(done, len(started))
        except BaseException:
            self.close()
            raise

    def connect(self, config: ServerConfig, others: Sequence[str] = ()) -> McpServer | None:
        """A server beside those of the file, until it or all are closed; None if there are
        MOST_GUESTS. Waits for nothing. others: names of those that are used together with it."""
        prefix = prefixes([*(each.name for each in self.shared), *others, config.name])[-1]
        with self._lock:
            self._guests = [guest for guest in self._guests if not guest.has_ended]
            if len(self._guests) >= MOST_GUESTS:
                return None
            connection = self._portal.call(Connection, config, prefix, GUEST_SECONDS)
            living = self._portal.start_task_soon(connection.live)
            self._guests.append(McpServer(config.name, connection, self._portal, living))
            return self._guests[-1]

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
        for guest in self._guests:
            guest.close()
        for each in self._connections:
            self._portal.call(each.close)
