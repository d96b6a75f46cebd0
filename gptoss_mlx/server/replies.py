"""Replies whose content takes a while: a stream of frames, or a value that is awaited.

A stream sends its headers at once and is never silent for long. When the caller leaves, what makes
the reply is cancelled.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from time import monotonic
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gptoss_mlx.server.policy import Policy

T = TypeVar("T")

GONE = 499
"""The status that is logged where the caller left; nobody reads it."""


def encoded(value: object) -> bytes:
    """JSON in as few bytes as it takes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class JSONReply(Response):
    """A value as JSON."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return encoded(content)


def event(value: object, name: str | None = None) -> bytes:
    """A server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + encoded(value) + b"\n\n"


def comment(text: str) -> bytes:
    """A line of server-sent events that clients pass over."""
    return f": {text}\n\n".encode()


class FrameStream(Response):
    """A streamed reply.

    frames: parts of the body; the generator is closed in every case. beat: the frame for a time
    without others; None for formats that have none.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        policy: Policy,
        media_type: str = "text/event-stream",
        beat: Callable[[], bytes] | None = lambda: comment("waiting"),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(media_type=media_type, headers=headers)
        del self.headers["content-length"]
        # Proxies hold streams back otherwise.
        self.headers.update({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._frames, self._beat, self._beat_seconds = frames, beat, policy.beat_seconds
        self._at = 0.0  # when something was sent last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        turn = asyncio.Lock()  # a beat and a frame are not sent at once

        async def put(message: Message) -> None:
            self._at = monotonic()
            async with turn:
                await send(message)

        head = {"status": self.status_code, "headers": self.raw_headers}
        await put({"type": "http.response.start", **head})
        beats = asyncio.ensure_future(self._send_beats(put))
        try:
            async with aclosing(self._frames) as frames:
                async for frame in frames:
                    await put({"type": "http.response.body", "body": frame, "more_body": True})
        finally:
            beats.cancel()
            await asyncio.wait({beats})
        await put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_beats(self, put: Send) -> None:
        """Send a beat wherever nothing was sent for as many seconds."""
        while self._beat is not None:
            silent = monotonic() - self._at
            if silent >= self._beat_seconds:
                beat = self._beat()
                await put({"type": "http.response.body", "body": beat, "more_body": True})
            await asyncio.sleep(max(0.01, self._beat_seconds - (monotonic() - self._at)))


async def unless_gone(receive: Receive, made: Awaitable[T]) -> T | None:
    """Await a value; cancel it and return None if the caller leaves before it is there."""
    making = asyncio.ensure_future(made)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await making if making.done() else None
    finally:
        for task in (making, leaving):
            task.cancel()
        await asyncio.wait({making, leaving})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def reply(request: Request, made: Awaitable[object]) -> Response:
    """The JSON of a value that is awaited while the caller stays."""
    value = await unless_gone(request.receive, made)
    return Response(status_code=GONE) if value is None else JSONReply(value)
