"""Streamable HTTP on loopback: a server of the package `mcp`, and one that answers oddly."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from mcp.server import MCPServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gptoss_mlx.tools.mcp.config import HttpServer, ServerConfig
from tests.tools.mcp.conftest import LONG, Start, call, names, said


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an application while it is served."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    async def start(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = start  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert started.wait(LONG)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(LONG)
        listener.close()


def at(url: str, **headers: str) -> ServerConfig:
    return ServerConfig("web", HttpServer(url, headers), timeout=LONG)


class Guarded:
    """An application for those who know a token alone; `seen` are the methods of requests."""

    def __init__(self, app: Any, token: str = "abc") -> None:
        self.app, self.token, self.seen = app, token, list[str]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.seen.append(scope["method"])
            if dict(scope["headers"]).get(b"authorization") != f"Bearer {self.token}".encode():
                await Response(status_code=401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def adder() -> MCPServer:
    server = MCPServer("adder")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    return server


@pytest.mark.parametrize("options", [{}, {"json_response": True}, {"stateless_http": True}])
def test_a_server_is_called_with_the_headers_of_its_file(
    start: Start, options: dict[str, bool]
) -> None:
    guarded = Guarded(adder().streamable_http_app(**options))
    with serving(guarded) as url:
        servers = start(at(f"{url}/mcp", Authorization="Bearer abc"))
        (server,) = servers.tools
        assert names(server) == ["web_add"]
        assert said(server, "add", a=1234, b=5678) == "6912"
        assert call(server, "add", a="x").failed
        servers.close()
        assert servers.notes() == []
    if not options.get("stateless_http"):
        assert guarded.seen[-1] == "DELETE"  # of the session


def test_a_refusal_is_told_by_its_status(start: Start) -> None:
    with serving(Guarded(adder().streamable_http_app())) as url:
        servers = start(at(f"{url}/mcp"))
        (first, second) = servers.notes()
        assert "HTTP 401 Unauthorized" in first
        assert "it is not started again" in second
        assert names(servers.tools[0]) == []


def test_an_address_that_nobody_listens_at_is_named(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    servers = start(at(f"http://127.0.0.1:{port}/mcp"))
    notes = servers.notes()
    assert len(notes) == 2
    assert all("connect" in note.lower() for note in notes)


def test_a_server_that_has_forgotten_us_is_greeted_again(start: Start) -> None:
    """As after it was started anew."""
    apps = [adder().streamable_http_app(), adder().streamable_http_app()]
    turn = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await apps[turn](scope, receive, send)

    async def both(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        contexts = [app.router.lifespan_context(app) for app in apps]
        async with contexts[0], contexts[1]:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

    with serving(both) as url:
        (server,) = start(at(f"{url}/mcp")).tools
        assert said(server, "add", a=1, b=2) == "3"
        turn = 1
        outcome = call(server, "add", a=1, b=2)
        assert outcome.failed
        assert "is started again" in outcome.text
        assert said(server, "add", a=1, b=2) == "3"


Answer = Callable[[Request, Any], Awaitable[Response]]


def odd_app(answer: Answer) -> Starlette:
    """An application that shakes hands and lists a tool; calls are answered by `answer`."""

    async def post(request: Request) -> Response:
        message = json.loads(await request.body())
        method, id = message["method"], message.get("id")
        if method == "tools/call":
            return await answer(request, id)
        if id is None:
            return Response(status_code=202)
        results: dict[str, Any] = {
            "initialize": {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "odd", "version": "1"},
            },
            "tools/list": {"tools": [{"name": "t", "inputSchema": {"type": "object"}}]},
        }
        data = {"jsonrpc": "2.0", "id": id, "result": results[method]}
        return Response(json.dumps(data), media_type="application/json")

    return Starlette(routes=[Route("/mcp", post, methods=["POST"])])


async def large(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * (1 << 20)


async def large_json(request: Request, id: Any) -> Response:
    return StreamingResponse(large(100), media_type="application/json")


async def large_event(request: Request, id: Any) -> Response:
    return StreamingResponse(large(100), media_type="text/event-stream")


async def large_refusal(request: Request, id: Any) -> Response:
    return StreamingResponse(large(100), status_code=400, media_type="application/json")


async def no_json(request: Request, id: Any) -> Response:
    return Response("<html>", media_type="application/json")


async def a_page(request: Request, id: Any) -> Response:
    return Response("<html>", media_type="text/html")


async def compressed(request: Request, id: Any) -> Response:
    """Which a limit of bytes would not bound."""
    headers = {"content-encoding": "gzip"}
    return Response(gzip.compress(b"{}"), media_type="application/json", headers=headers)


async def broken(request: Request, id: Any) -> Response:
    return Response(status_code=500)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (large_json, "its answer has more than 16 MiB, the most that is read"),
        (large_event, "SSE stream failed"),
        (large_refusal, "Server returned an error response"),
        (no_json, "Failed to parse JSON response"),
        (a_page, "Unexpected content type: text/html"),
        (compressed, "The server web ended during the call"),
        (broken, "Server returned an error response"),
    ],
)
def test_an_answer_that_is_none_fails_the_call_alone(
    start: Start, answer: Answer, text: str
) -> None:
    with serving(odd_app(answer)) as url:
        servers = start(at(f"{url}/mcp"))
        (server,) = servers.tools
        for _ in range(2):
            outcome = call(server, "t")
            assert outcome.failed
            assert text in outcome.text
        servers.close()


def test_a_call_that_is_ended_does_not_wait_for_the_server(start: Start) -> None:
    asked = iter([False, True])
    forever = threading.Event()

    async def hang(request: Request, id: Any) -> Response:
        async def body() -> AsyncIterator[bytes]:
            while not forever.is_set():
                yield b": nothing\n\n"
                if await request.is_disconnected():
                    return

        return StreamingResponse(body(), media_type="text/event-stream")

    with serving(odd_app(hang)) as url:
        servers = start(at(f"{url}/mcp"))
        outcome = servers.tools[0].call("functions.web_t", "{}", lambda: next(asked))
        assert outcome.text == "The call was ended by the user."
        forever.set()
        servers.close()
