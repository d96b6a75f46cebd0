"""A server of the chat page whose answers are scripted: the page's files, its API and its headers.

A test says what the next answers are, holds a stream at a gate, and reads what the page asked for.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.root import ROOT

PAGE = ROOT / "gptoss_mlx" / "server" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; form-action 'none'; frame-ancestors 'none'; "
    "base-uri 'none'"
)
PATIENCE = 30  # seconds a stream waits at a gate

Chunk = dict[str, Any]


class Cut:
    """A step of a stream: the connection breaks off."""


class End:
    """A step of a stream: it ends as a whole response does, without its `[DONE]`."""


class Gate:
    """A step of a stream: nothing more is sent before the test opens it."""

    def __init__(self) -> None:
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    async def passed(self) -> None:
        for _ in range(PATIENCE * 100):
            if self._opened.is_set():
                return
            await asyncio.sleep(0.01)
        raise TimeoutError("no test opened the gate")


Step = Chunk | str | Gate | Cut | End
"""A chunk, a comment line, or one of the above."""


@dataclass
class Reply:
    """An answer to come: a stream, or a refusal with a status and an error."""

    steps: list[Step] = field(default_factory=list)
    status: int = 200
    error: Chunk | None = None


def delta(**fields: object) -> Chunk:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def said(*pieces: str) -> list[Step]:
    return [delta(content=piece) for piece in pieces]


def thought(*pieces: str) -> list[Step]:
    return [delta(reasoning=piece, reasoning_content=piece) for piece in pieces]


def called(name: str, *pieces: str, index: int = 0) -> list[Step]:
    """A tool call whose arguments come in pieces."""
    head = {"index": index, "id": f"call_{name}", "type": "function"}
    first = {**head, "function": {"name": name, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": piece}} for piece in pieces]
    return [delta(tool_calls=[call]) for call in (first, *rest)]


def ended(reason: str = "stop", *, prompt: int = 40, answer: int = 12, thoughts: int = 0) -> Step:
    """The finish reason, the counts and the timings in one chunk."""
    return {
        "choices": [{"index": 0, "delta": {}, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": thoughts},
        },
        "timings": {"prompt_ms": 820.0, "predicted_ms": 300.0, "predicted_per_second": 41.3},
    }


class ScriptedServer:
    """What the page's API answers, and what it was asked."""

    def __init__(self) -> None:
        self.replies: deque[Reply] = deque()
        self.requests: list[Chunk] = []
        self.headers: list[dict[str, str]] = []
        self.health: list[Chunk] = []  # states of a server that is not ready, one an answer
        self.key = ""
        self.files: dict[str, bytes] = {}
        self.words: list[tuple[str, str, bool]] = []  # of a person on calls that waited
        self.approved = Gate()
        self.models = [{"id": "gpt-oss-20b", "object": "model", "context_length": 131072}]
        self.aborted = threading.Event()
        self.url = ""

    def answer(self, steps: Iterable[Step]) -> None:
        self.replies.append(Reply([*steps]))

    def refuse(self, status: int, message: str, code: str = "") -> None:
        error = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
        self.replies.append(Reply(status=status, error=error))

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self._index),
                Route("/page/{path:path}", self._file),
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/responses", self._respond, methods=["POST"]),
                Route("/v1/responses/{id}/approvals", self._approve, methods=["POST"]),
                Route("/v1/containers/{container}/files/{id}/content", self._content),
            ]
        )

    async def _index(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    async def _file(self, request: Request) -> Response:
        path = (PAGE / request.path_params["path"]).resolve()
        if not path.is_relative_to(PAGE) or not path.is_file():
            return Response(status_code=404)
        return FileResponse(path, headers={"Content-Security-Policy": POLICY})

    async def _health(self, request: Request) -> Response:
        if self.health:
            return JSONResponse(self.health.pop(0), status_code=503)
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        if refusal := self._without_key(request):
            return refusal
        return JSONResponse({"object": "list", "data": self.models})

    async def _respond(self, request: Request) -> Response:
        return await self._chat(request)

    async def _approve(self, request: Request) -> Response:
        word = await request.json()
        self.words.append((request.path_params["id"], word["item_id"], word["approve"]))
        self.approved.open()
        return JSONResponse(word)

    async def _content(self, request: Request) -> Response:
        if refusal := self._without_key(request):
            return refusal
        data = self.files.get(request.path_params["id"])
        if data is None:
            return JSONResponse({"error": {"message": "No such file."}}, status_code=404)
        return Response(data, media_type="application/octet-stream")

    async def _chat(self, request: Request) -> Response:
        self.requests.append(await request.json())
        self.headers.append(dict(request.headers))
        if refusal := self._without_key(request):
            return refusal
        reply = self.replies.popleft() if self.replies else Reply([*said("Hello."), ended()])
        if reply.error is not None:
            return JSONResponse({"error": reply.error}, status_code=reply.status)
        return StreamingResponse(self._stream(reply), media_type="text/event-stream")

    def _without_key(self, request: Request) -> Response | None:
        if not self.key or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        error = {"message": "A valid API key is wanted.", "type": "authentication_error"}
        return JSONResponse({"error": error}, status_code=401)

    async def _stream(self, reply: Reply) -> AsyncIterator[str]:
        try:
            for step in reply.steps:
                if isinstance(step, Gate):
                    await step.passed()
                elif isinstance(step, Cut):
                    raise ConnectionAbortedError
                elif isinstance(step, End):
                    return
                elif isinstance(step, str):
                    yield f"{step}\n\n"
                else:
                    yield f"data: {json.dumps(step)}\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.aborted.set()
            raise


@contextmanager
def served(server: ScriptedServer) -> Iterator[ScriptedServer]:
    """Serves on a free port of the loopback interface, in a thread, while the block runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        server.app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=1
    )
    loop = uvicorn.Server(config)
    thread = threading.Thread(target=loop.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield server
    finally:
        loop.should_exit = True
        thread.join()
        listener.close()
