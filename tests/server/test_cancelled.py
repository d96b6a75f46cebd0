"""A request that is cancelled at any point of its handling, and a caller that leaves at any point,
lets go of the model: nothing runs on, nothing stays leased."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from gptoss_mlx.server.app import App
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.registry import Registry, ServedModel
from gptoss_mlx.server.service import Service
from gptoss_mlx.settings import Settings
from tests.support.scripted_model import FINAL, Scripted

REPLY = FINAL + "word " * 200 + "<|return|>"
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": ["hi", "ho"], "max_tokens": 50},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 50, "model": "claude"},
    "/v1/messages/count_tokens": {"messages": MESSAGES, "model": "claude"},
    "/api/chat": {"messages": MESSAGES},
    "/api/generate": {"prompt": "hi"},
    "/api/v0/chat/completions": {"messages": MESSAGES},
}
POINTS = (*range(24), 30, 40, 60, 100, 200)
"""Turns of the event loop after which the request is cancelled, or its caller leaves."""


class Call:
    """One request straight to the app. `leave` is what a caller does who closes the connection."""

    def __init__(self, app: App, path: str, body: dict[str, Any]) -> None:
        self._data: bytes | None = json.dumps(body).encode()
        self._left = asyncio.Event()
        self.sent: list[Any] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "state": {},
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    def cancel(self) -> None:
        self.task.cancel()

    def leave(self) -> None:
        self._left.set()

    async def _receive(self) -> dict[str, Any]:
        if self._data is not None:
            data, self._data = self._data, None
            return {"type": "http.request", "body": data, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        await asyncio.sleep(0)


async def cut_short(path: str, body: dict[str, Any], end: Callable[[Call], None]) -> None:
    scripted = Scripted()
    scripted.replies = [scripted.engine.tokenizer.encode(REPLY)] * (4 * len(POINTS))
    registry = Registry([ServedModel("m", Settings())], opener=lambda *_: scripted.engine)
    service = Service(registry, Policy())
    app = App(service)
    served = registry.find(None)
    await registry.load(served)
    for point in POINTS:
        call = Call(app, path, body)
        for _ in range(point):
            await asyncio.sleep(0)
        end(call)
        await asyncio.wait({call.task}, timeout=60)
        assert call.task.done()
        for _ in range(6000):
            if not served.sequences and scripted.engine.finished:
                break
            await asyncio.sleep(0.01)
        assert (served.sequences, served.leases) == (0, 0), point
        assert app.responses.running == {}, point
        assert scripted.engine.finished
    await service.close()


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("end", [Call.cancel, Call.leave], ids=["cancelled", "left"])
def test_nothing_runs_on(path: str, stream: bool, end: Callable[[Call], None]) -> None:
    asyncio.run(cut_short(path, {**BODIES[path], "stream": stream}, end))


class Leaving(Call):
    """A caller who leaves while the head of the answer is sent."""

    async def _send(self, message: Any) -> None:
        self.leave()
        for _ in range(100):
            await asyncio.sleep(0)


def test_a_response_whose_stream_never_begins_ends() -> None:
    async def left() -> None:
        scripted = Scripted(REPLY)
        registry = Registry([ServedModel("m", Settings())], opener=lambda *_: scripted.engine)
        service = Service(registry, Policy())
        app = App(service)
        await registry.load(registry.find(None))
        await Leaving(app, "/v1/responses", {"input": "hi", "stream": True}).task
        await asyncio.sleep(0)
        assert app.responses.running == {}
        assert registry.find(None).leases == 0
        await service.close()

    asyncio.run(left())
