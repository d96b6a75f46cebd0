"""The stdio transport: a server's process under a warden, and JSON-RPC through its pipes.

The package `mcp` has one as well, which reads a line of any length into memory. Here a message has
a limit, and so has what a server writes that nobody asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import (
    INTERNAL_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
    jsonrpc_message_adapter,
)

from gptoss_mlx.system.units import show_bytes
from gptoss_mlx.tools.mcp.config import StdioServer
from gptoss_mlx.tools.mcp.failure import ServerEndedError
from gptoss_mlx.tools.mcp.lines import MESSAGE_LIMIT, LastWords, LineSplitter

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

_WARDEN = Path(__file__).with_name("warden.py")
_PIECE = 1 << 16
_FLOOD = 256 << 20  # bytes between two answers
_LINE_COST = 1024  # bytes that a line counts as besides its own
_STDERR_PAUSE = 0.002  # seconds after a piece, so that a flood costs little
_TICK = 0.01
_LEAVE = 0.5  # seconds to end after stdin was closed
_ENDED = 4.0  # seconds for the warden
_STATUS = 1.0


@asynccontextmanager
async def stdio_transport(server: StdioServer, said: LastWords) -> AsyncIterator[TransportStreams]:
    """Start a server; it is ended with the block. said: takes its stderr.

    Raises ServerEndedError as soon as it ends by itself, and OSError.
    """
    to_us, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, from_us = anyio.create_memory_object_stream[SessionMessage](0)
    process = _Process(server, said)
    with to_us, read, write, from_us:
        await process.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.read, to_us)
            tasks.start_soon(process.write, from_us)
            tasks.start_soon(process.hear)
            try:
                yield read, write
            finally:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await process.end()


class _Process:
    """A server's process; the pipes to it, and the lifeline of its warden."""

    def __init__(self, server: StdioServer, said: LastWords) -> None:
        self._server, self._said = server, said
        self._process: asyncio.subprocess.Process
        self._lifeline = -1
        self._waiting: dict[str, RequestId] = {}  # requests without an answer

    async def start(self) -> None:
        lifeline, self._lifeline = os.pipe()
        command = (sys.executable, "-I", "-S", str(_WARDEN), str(lifeline), *self._server.command)
        try:
            # Shielded, since asyncio leaves pipes open where it is cancelled meanwhile.
            with anyio.CancelScope(shield=True):
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(lifeline,),
                    env={**get_default_environment(), **self._server.env},
                    cwd=self._server.cwd,
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)

    async def read(self, to_us: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        """Pass on messages. Raises ServerEndedError at the end of stdout, or of our patience."""
        assert self._process.stdout is not None
        lines, left = LineSplitter(), _FLOOD
        with to_us, suppress(anyio.BrokenResourceError):  # the session is over
            while data := await self._process.stdout.read(_PIECE):
                left -= len(data)
                for line in lines.feed(data):
                    left -= _LINE_COST
                    for message in self._too_long() if line is None else _messages(line):
                        left = _FLOOD if self._is_answer(message) else left
                        await to_us.send(SessionMessage(message))
                if left < 0:
                    raise ServerEndedError("it wrote without end what nobody had asked for")
        await self._exits(_STATUS)
        status = self._process.returncode
        how = "closed its stdout" if status is None else f"ended with status {status}"
        raise ServerEndedError(f"it {how}")

    async def write(self, from_us: MemoryObjectReceiveStream[SessionMessage]) -> None:
        """Pass on messages until the server reads no more; who sends one then is told."""
        assert self._process.stdin is not None
        with from_us, suppress(ConnectionError):
            async for item in from_us:
                message = item.message
                if isinstance(message, JSONRPCRequest):
                    self._waiting[str(message.id)] = message.id
                elif isinstance(message, JSONRPCNotification) and message.params:
                    self._waiting.pop(str(message.params.get("requestId")), None)
                line = message.model_dump_json(by_alias=True, exclude_unset=True)
                self._process.stdin.write(line.encode("utf-8") + b"\n")
                await self._process.stdin.drain()

    async def hear(self) -> None:
        """Keep the end of stderr."""
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(_PIECE):
            self._said.add(data)
            await anyio.sleep(_STDERR_PAUSE)

    async def end(self) -> None:
        """As the protocol says: close stdin, wait, signal the process group, kill it."""
        process = self._process
        assert process.stdin is not None
        process.stdin.close()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._drain, process.stdout)
            tasks.start_soon(self._drain, process.stderr)
            has_left = await self._exits(_LEAVE)
            os.close(self._lifeline)
            if not has_left and not await self._exits(_ENDED):
                process.kill()
                await self._exits(_STATUS)
            tasks.cancel_scope.deadline = anyio.current_time() + _STATUS

    async def _drain(self, stream: asyncio.StreamReader | None) -> None:
        """Read to the end, so that nothing is blocked by a full pipe."""
        assert stream is not None
        while data := await stream.read(_PIECE):
            if stream is self._process.stderr:
                self._said.add(data)

    async def _exits(self, seconds: float) -> bool:
        """Whether the process ends in time. asyncio's `wait` would wait for the pipes' end too."""
        with anyio.move_on_after(seconds):
            while self._process.returncode is None:
                await anyio.sleep(_TICK)
        return self._process.returncode is not None

    def _too_long(self) -> list[JSONRPCMessage]:
        """Errors in place of an answer that is too long to know whose it is."""
        text = f"its answer has more than {show_bytes(MESSAGE_LIMIT)}, the most that is read"
        error = ErrorData(code=INTERNAL_ERROR, message=text)
        return [JSONRPCError(jsonrpc="2.0", id=id, error=error) for id in self._waiting.values()]

    def _is_answer(self, message: JSONRPCMessage) -> bool:
        """Whether a request waited for it; then it waits no more."""
        if not isinstance(message, JSONRPCResponse | JSONRPCError):
            return False
        return self._waiting.pop(str(message.id), None) is not None


def _messages(line: bytes) -> list[JSONRPCMessage]:
    """The message in a line; none where a program prints something else."""
    if not line.lstrip().startswith(b"{"):
        return []
    try:
        # Not by pydantic's parser, which refuses halves of characters, as servers cut texts.
        return [jsonrpc_message_adapter.validate_python(json.loads(line), by_name=False)]
    except (ValueError, RecursionError):
        return []
