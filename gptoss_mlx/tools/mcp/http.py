"""The streamable HTTP transport of the package `mcp`, with a limit to what is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
import httpx2
from mcp.client.streamable_http import streamable_http_client

from gptoss_mlx.system.units import show_bytes
from gptoss_mlx.tools.browser.web.address import is_public, system_addresses
from gptoss_mlx.tools.browser.web.client import system_context
from gptoss_mlx.tools.mcp.config import HttpServer
from gptoss_mlx.tools.mcp.failure import ServerEndedError
from gptoss_mlx.tools.mcp.lines import MESSAGE_LIMIT, LastWords

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

_CONNECT = 30.0  # seconds; of an answer, the time of the call is the limit
_TOO_LONG = f"its answer has more than {show_bytes(MESSAGE_LIMIT)}, the most that is read"


@asynccontextmanager
async def http_transport(server: HttpServer, said: LastWords) -> AsyncIterator[TransportStreams]:
    """Talk with a server until the block ends. said: takes the statuses of refusals.

    Raises ServerEndedError where the server has forgotten the session, and what httpx2 does.
    """

    async def check(response: httpx2.Response) -> None:
        if response.status_code >= 400 and response.request.method == "POST":
            said.add(f"HTTP {response.status_code} {response.reason_phrase}\n".encode())
        if response.status_code == 404 and "mcp-session-id" in response.request.headers:
            raise ServerEndedError("it has forgotten the session")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx2.DecodingError("its answer is compressed, though none was asked for")
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):  # whose events have a limit each
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Limited(response.stream)

    client = httpx2.AsyncClient(
        headers={"accept-encoding": "identity", **server.headers},
        timeout=httpx2.Timeout(_CONNECT, read=None),
        event_hooks={"response": [check]},
        transport=_PublicOnly() if server.is_foreign else None,
    )
    async with (
        client,
        streamable_http_client(
            server.url, http_client=client, max_sse_event_size=MESSAGE_LIMIT
        ) as streams,
    ):
        yield streams


class _PublicOnly(httpx2.AsyncBaseTransport):
    """Connects to public addresses alone, and to the very one that was checked: a second answer of
    the name's server changes nothing (DNS rebinding). Proxies are not used."""

    def __init__(self) -> None:
        self._inner = httpx2.AsyncHTTPTransport(verify=system_context(), trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.raw_host.decode("ascii")
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        try:
            addresses = await anyio.to_thread.run_sync(system_addresses, host, port)
        except OSError as error:
            raise httpx2.ConnectError(f"the host {host[:80]} is not known") from error
        if not addresses or not all(map(is_public, addresses)):
            raise httpx2.ConnectError(f"{host[:80]} is no public address")
        checked = httpx2.Request(
            request.method,
            request.url.copy_with(host=addresses[0]),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )
        return await self._inner.handle_async_request(checked)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Limited(httpx2.AsyncByteStream):
    """A body of at most MESSAGE_LIMIT bytes; more is an httpx2.StreamError."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._stream:
            size += len(piece)
            if size > MESSAGE_LIMIT:
                raise httpx2.StreamError(_TOO_LONG)
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
