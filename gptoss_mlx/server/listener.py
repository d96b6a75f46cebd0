"""Listens on a socket with uvicorn, and ends well: what runs is finished, within a time of grace.

A connection that sends half a request, or takes nothing of its answer, is given up after a while,
so that it holds no row of the model and no memory for ever.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.policy import Policy

HEAD_BYTES = 64 << 10
"""The most of a request's head."""

CONNECTIONS = 1024
"""At the same time; further requests are answered with 503."""

BACKLOG = 512
"""Connections that wait to be accepted."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OptionError."""
    with ExitStack() as undo:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            listening = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except (OSError, UnicodeError, OverflowError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise OptionError(f"cannot listen on {shown(host)}, port {port}: {said}") from error
        undo.pop_all()
    return listening


class Listener(uvicorn.Server):
    """The server of one app. SIGTERM ends it after the grace, a second one at once; Ctrl-C ends it
    in the same way, and then interrupts. has_failed: asked ten times a second; True ends it."""

    def __init__(
        self, app: ASGIApp, policy: Policy, has_failed: Callable[[], bool] = lambda: False
    ) -> None:
        self._has_failed = has_failed
        super().__init__(
            uvicorn.Config(
                app,
                http=type("Connection", (_Connection,), {"policy": policy}),
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS,
                h11_max_incomplete_event_size=HEAD_BYTES,
                timeout_graceful_shutdown=policy.grace,  # type: ignore[arg-type]  # may be 0.5
            )
        )

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._has_failed()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGTERM:
            return super().handle_exit(sig, frame)
        self.force_exit, self.should_exit = self.should_exit, True


class _Connection(H11Protocol):
    """A connection that is aborted when the client lets it hang."""

    policy: Policy
    _hanging: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._hang(self.policy.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_between and self._hanging is None:
            self._hang(self.policy.head_seconds)
        super().data_received(data)
        if not self._is_between:
            self._go_on()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._hang(self.policy.stall_seconds)

    def resume_writing(self) -> None:
        self._go_on()
        super().resume_writing()

    @property
    def _is_between(self) -> bool:
        """Whether no request is being answered, so that what comes is the head of one."""
        return self.cycle is None or self.cycle.response_complete

    def _hang(self, seconds: float) -> None:
        self._go_on()
        self._hanging = self.loop.call_later(seconds, self.transport.abort)

    def _go_on(self) -> None:
        if self._hanging is not None:
            self._hanging.cancel()
            self._hanging = None
