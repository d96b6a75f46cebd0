"""The connection to one server: made, made once more after a failure, then given up.

Everything here runs on the thread of the event loop. A server that asks for a person's input, for a
model's answer or for folders is refused, as a client that has not said that it can do these.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import anyio
from mcp.client import ClientSession, IncomingMessage
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    CONNECTION_CLOSED,
    METHOD_NOT_FOUND,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
    PaginatedRequestParams,
    RequestId,
    ToolListChangedNotification,
)
from pydantic import ValidationError

from gptoss_mlx import __version__
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.tools.browser.plain import one_line
from gptoss_mlx.tools.mcp.config import HttpServer, ServerConfig, StdioServer
from gptoss_mlx.tools.mcp.failure import CallFailedError, ServerEndedError
from gptoss_mlx.tools.mcp.http import http_transport
from gptoss_mlx.tools.mcp.lines import LastWords
from gptoss_mlx.tools.mcp.listing import MOST_TOOLS, read_listing
from gptoss_mlx.tools.mcp.stdio import stdio_transport
from gptoss_mlx.tools.tool_server import ListedTool, Listing

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

START_SECONDS = 30.0
"""The time in which a server has to answer and to list its tools."""

_LIST_SECONDS = 10.0  # of a list that has changed
_CLOSE_SECONDS = 3.0
_REASON_SECONDS = 2.0
_TOLD = 300  # characters of what is said of a failure
_CLOSED = "Connection closed"  # other errors of the same code are of a single call
_US = Implementation(name="gptoss-mlx", version=__version__)

for _logger in ("mcp", "client"):  # what the package reports of a server goes to our notes instead
    logging.getLogger(_logger).addHandler(logging.NullHandler())
for _logger in ("mcp", "client", "httpx2", "httpcore2"):
    # Below this level they write out what is said, and addresses with keys in them.
    logging.getLogger(_logger).setLevel(logging.WARNING)


class Connection:
    """One server, and what it offers. prefix: what the names of its functions begin with.

    tools: of the list that was read last. notes: what a person is to be told; of tell, if it is
    given, which is called with each.
    """

    def __init__(
        self,
        config: ServerConfig,
        prefix: str,
        start_seconds: float,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._config, self._start_seconds = config, start_seconds
        self.prefix = prefix
        self.tools: tuple[ListedTool, ...] = ()
        self.notes: deque[str] = deque()
        self._tell = tell or self.notes.append
        self._session: ClientSession | None = None
        self._dispatcher: _Dispatcher
        self._settled, self._closing, self._over = anyio.Event(), anyio.Event(), anyio.Event()
        self._scope = anyio.CancelScope()
        self._has_changed = False
        self._lost: str | None = None  # why there is no connection and will be none
        self._is_last = False  # whether it is the second connection

    async def live(self) -> None:
        """Stay connected until `close`; returns early only if the server is given up."""
        with self._scope:
            for self._is_last in (False, True):
                said = LastWords()
                reason = "it closed the connection"
                try:
                    await self._connect(said)
                except Exception as error:  # a task group wraps whatever its transport raises
                    reason = _reason(error)
                if self._closing.is_set():
                    break
                words = f"; its last words: {said}" if str(said) else ""
                then = "it is not started again" if self._is_last else "it is started again"
                self._note(f"{reason}; {then}{words}")
            self._lost = reason
        self._settled.set()

    async def _connect(self, said: LastWords) -> None:
        """Connect and stay until `close`. Raises whatever ends the connection."""
        self._over = anyio.Event()
        try:
            async with _transport(self._config.server, said) as (read, write):
                self._dispatcher = _Dispatcher(read, write)
                async with ClientSession(
                    dispatcher=self._dispatcher, message_handler=self._hear, client_info=_US
                ) as session:
                    with anyio.move_on_after(self._start_seconds) as limit:
                        await self._begin(session)
                    if limit.cancelled_caught:
                        seconds = f"{self._start_seconds:g} s"
                        raise ServerEndedError(f"it did not answer within {seconds}")
                    self._session = session
                    self._settled.set()
                    await self._over.wait()
        finally:
            self._session = None
            if self._settled.is_set():
                self._settled = anyio.Event()

    async def _begin(self, session: ClientSession) -> None:
        try:
            await _greet(session)
            self.tools = await self._list(session)
        except MCPError as error:
            if error.code == CONNECTION_CLOSED:  # why, the transport is about to say
                await anyio.sleep(_REASON_SECONDS)
            raise

    async def settled(self) -> None:
        """Wait until the server is connected or given up."""
        await self._settled.wait()

    async def call(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        """Raises CallFailedError; cancelling it tells the server."""
        name, seconds = self._config.name, self._config.timeout
        with anyio.move_on_after(seconds):
            await self._settled.wait()
            if (session := self._session) is None:
                raise CallFailedError(f"The server {name} is not running: {self._lost}.")
            request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=arguments))
            try:
                return await session.send_request(request, CallToolResult)
            except MCPError as error:
                raise CallFailedError(self._failure(error)) from error
            except ValidationError as error:
                raise CallFailedError(f"The server {name} gave no valid result.") from error
        raise CallFailedError(
            f"The server {name} did not answer within {seconds:g} s, the limit of a call."
        )

    def hide(self, text: str) -> str:
        """A text of the server's without the secrets that it was shown."""
        server = self._config.server
        return server.hide(text) if isinstance(server, HttpServer) else text

    async def listing(self) -> Listing:
        """The tools that are there now, once the server is connected or given up."""
        await self._settled.wait()
        await self.refresh()
        if self._lost is not None:
            error = f"The server {self._config.name} is not running: {self._lost}."
            return Listing(error=self.hide(error))
        return Listing(self.tools)

    async def refresh(self) -> None:
        """Read the list of tools anew, if the server said that it has changed."""
        session = self._session
        if session is None or not self._has_changed:
            return
        with anyio.move_on_after(_LIST_SECONDS) as limit:
            try:
                self.tools = await self._list(session)
                return
            except anyio.get_cancelled_exc_class():
                self._has_changed = not limit.cancel_called  # who asked has left: read it again
                raise
            except (MCPError, ValidationError) as error:
                self._note(f"its tools have changed and could not be read: {_told(error)}")
                return
        self._note(f"its tools have changed and were not listed within {_LIST_SECONDS:g} s")

    def close(self) -> None:
        """Let `live` come to its end, which may take as long as a server's process needs."""
        self._closing.set()
        self._over.set()
        if self._session is None:
            self._scope.cancel()
        else:
            self._scope.deadline = anyio.current_time() + _CLOSE_SECONDS

    async def _list(self, session: ClientSession) -> tuple[ListedTool, ...]:
        """All pages of the list, up to a limit."""
        self._has_changed = False
        listed: list[object] = []
        cursors: set[str | None] = {None}
        cursor = None
        while len(listed) <= MOST_TOOLS:
            try:
                page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
            except MCPError as error:
                if error.code != METHOD_NOT_FOUND:
                    raise
                break  # a server without tools
            listed += self._dispatcher.listed
            cursor = page.next_cursor
            if cursor in cursors:
                break
            cursors.add(cursor)
        tools, faults = read_listing(listed, self.prefix)
        if faults is not None:
            self._note(faults)
        return tools

    async def _hear(self, message: IncomingMessage) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._has_changed = True

    def _failure(self, error: MCPError) -> str:
        """What a model is told; where the connection is over, it is ended as well."""
        name = self._config.name
        if error.code != CONNECTION_CLOSED or error.message != _CLOSED:
            return f"The server {name} gave an error: {error}"
        if isinstance(self._config.server, HttpServer):  # of a process the transport knows more
            self._over.set()
        self._session, self._settled = None, anyio.Event()  # the next call waits for another
        then = "is not started again" if self._is_last else "is started again without what it kept"
        return f"The server {name} ended during the call, and {then}."

    def _note(self, text: str) -> None:
        self._tell(self.hide(f"MCP server {self._config.name}: {text}"))


class _Dispatcher(JSONRPCDispatcher[TransportContext]):
    """A dispatcher that takes the tools out of a list before it is validated as a whole.

    listed: those of the last page, as the server wrote them.
    """

    listed: list[object]

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,
        *,
        _related_request_id: RequestId | None = None,
    ) -> dict[str, Any]:
        result = await super().send_raw_request(
            method, params, opts, _related_request_id=_related_request_id
        )
        if method == "tools/list":
            tools = result.get("tools")
            self.listed = tools if isinstance(tools, list) else []
            result = {**result, "tools": []}
        return result


def _transport(
    server: StdioServer | HttpServer, said: LastWords
) -> AbstractAsyncContextManager[TransportStreams]:
    if isinstance(server, HttpServer):
        return http_transport(server, said)
    return stdio_transport(server, said)


async def _greet(session: ClientSession) -> None:
    """Agree on a version: by the handshake that every server of today knows, or else by the one
    that has replaced it."""
    try:
        await session.initialize()
    except MCPError as error:
        if error.code == CONNECTION_CLOSED:
            raise
        try:
            await session.discover()
        except MCPError:
            raise error from None


def _reason(error: BaseException) -> str:
    """What went wrong, of all that a group of tasks reports."""
    leaves = _leaves(error)
    return _told(next((one for one in leaves if isinstance(one, ServerEndedError)), leaves[0]))


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]


def _told(error: BaseException) -> str:
    """An error of a server's, in a line of ours."""
    return one_line(str(error), _TOLD) or shown(error)
