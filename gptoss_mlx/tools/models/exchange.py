"""An exchange: one POST of JSON to the URL that a person named, which can be ended at any moment.

It runs on a thread of its own. Redirects are not followed, and proxies not used, so that key and
text go to that server alone; by http they go to loopback and private addresses only.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from urllib.parse import SplitResult

from gptoss_mlx.tools.browser.web.address import Resolver, is_public, system_addresses
from gptoss_mlx.tools.browser.web.client import system_context

BYTES_LIMIT = 4 << 20
"""Bytes of a reply."""

LOOK = 0.05
"""Seconds between two looks whether it is to end."""


class ExchangeError(Exception):
    """An exchange without a reply; the message says why, in a sentence."""


@dataclass(frozen=True)
class Reply:
    """headers: by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Exchange:
    """target: where to post, in http or https. seconds: for all of it."""

    def __init__(
        self,
        target: SplitResult,
        headers: Mapping[str, str],
        body: bytes,
        seconds: float,
        resolve: Resolver = system_addresses,
    ) -> None:
        self._target, self._headers, self._body = target, dict(headers), body
        self._resolve, self._deadline = resolve, time.monotonic() + seconds
        self._seconds = seconds
        self._lock, self._finished = Lock(), Event()
        self._socket: socket.socket | None = None
        self._ended = False
        self._reply: Reply | None = None
        self._error: Exception | None = None

    def run(self, cancel: Callable[[], bool]) -> Reply:
        """The reply. cancel: asked all the time; True ends the exchange. Raises ExchangeError."""
        Thread(target=self._work, name="exchange", daemon=True).start()
        try:
            while not self._finished.wait(LOOK):
                if cancel():
                    raise ExchangeError("The call was ended by the user.")
                if time.monotonic() > self._deadline:
                    raise ExchangeError(self._late)
        finally:
            self._end()
        if self._reply is not None:
            return self._reply
        assert self._error is not None
        raise _in_words(self._error, self._target, self._late) from self._error

    @property
    def _late(self) -> str:
        return f"There was no answer within {self._seconds:g} seconds."

    def _end(self) -> None:
        """Have the thread end, whatever it waits for."""
        with self._lock:
            self._ended = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _work(self) -> None:
        try:
            self._reply = self._exchanged()
        except Exception as error:  # of any kind: `run` raises it on its own thread
            self._error = error
        finally:
            self._finished.set()

    def _exchanged(self) -> Reply:
        host, port = self._target.hostname or "", self._target.port
        secure = self._target.scheme == "https"
        connection = http.client.HTTPConnection(host, port or (443 if secure else 80))
        with self._connected(host, connection.port) as plain:
            connection.sock = self._secured(plain, host) if secure else plain
            with closing(connection):
                path = self._target.path
                path += f"?{self._target.query}" if self._target.query else ""
                headers = {**self._headers, "Host": self._target.netloc, "Connection": "close"}
                connection.request("POST", path, self._body, headers)
                with connection.getresponse() as answer:
                    body = answer.read(BYTES_LIMIT + 1)
                    cut_off = bool(answer.length)
        if len(body) > BYTES_LIMIT:
            raise ExchangeError(f"It sent more than {BYTES_LIMIT:,} bytes.")
        if cut_off:
            raise ExchangeError("It ended in the middle of its answer.")
        return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, body)

    def _connected(self, host: str, port: int) -> socket.socket:
        """A socket connected to the first address that takes it."""
        addresses = list(self._resolve(host, port))
        if self._target.scheme == "http" and any(map(is_public, addresses)):
            raise ExchangeError(f"{host} is a public address, where http is refused: use https.")
        error: OSError = OSError("it has no address")
        for address in addresses:
            try:
                return self._held(socket.create_connection((address, port), timeout=self._left))
            except OSError as failed:
                error = failed
        raise error

    def _secured(self, plain: socket.socket, host: str) -> ssl.SSLSocket:
        made = system_context().wrap_socket(
            plain, server_hostname=host, do_handshake_on_connect=False
        )
        try:
            self._held(made)
            made.do_handshake()
        except BaseException:
            made.close()
            raise
        return made

    def _held(self, connected: socket.socket) -> socket.socket:
        """The socket, which `_end` shuts down from now on."""
        with self._lock:
            if self._ended:
                connected.close()
                raise TimeoutError
            self._socket = connected
        return connected

    @property
    def _left(self) -> float:
        """Seconds. Raises TimeoutError if there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _in_words(error: Exception, target: SplitResult, late: str) -> ExchangeError:
    if isinstance(error, ExchangeError):
        return error
    if isinstance(error, TimeoutError):
        return ExchangeError(late)
    if isinstance(error, ssl.SSLError):
        return ExchangeError(f"There is no secure connection: {error.reason or 'TLS failed'}.")
    if isinstance(error, socket.gaierror):
        return ExchangeError(f"The host {target.hostname} is not known.")
    if isinstance(error, http.client.HTTPException | ConnectionResetError | BrokenPipeError):
        return ExchangeError(f"{target.netloc} did not answer as HTTP.")
    if isinstance(error, OSError):
        return ExchangeError(f"{target.netloc} cannot be reached: {error.strerror or error}.")
    return ExchangeError(f"The exchange failed: {type(error).__name__}.")
