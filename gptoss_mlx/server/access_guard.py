"""The guard before every route: hosts, keys, origins and a request id.

DNS rebinding: a name that an attacker owns may lead to this machine, so only names of this machine
and addresses are taken as a Host. CORS: a page of another origin reads nothing unless it was named.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
import socket
import time
from collections.abc import Callable
from typing import TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.metrics import Metrics
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.problems import Problem, problem_of

logger = logging.getLogger(__name__)

Show: TypeAlias = Callable[[Scope, Problem], Response]
"""Writes a problem in the shape of the API that was called."""

OPEN_PATHS = ("/", "/health")
"""Paths that need no key; and all under /page/."""

_METHODS = "GET, POST, PUT, DELETE, HEAD, OPTIONS"
_DAY = "86400"


class AccessGuard:
    """An ASGI app around another one."""

    def __init__(self, app: ASGIApp, policy: Policy, metrics: Metrics, show: Show) -> None:
        self._app, self._policy, self._metrics, self._show = app, policy, metrics, show
        names = ("localhost", socket.gethostname(), *policy.hosts)
        self._hosts = {name.lower().rstrip(".") for name in names}
        self._keys = [key.encode() for key in policy.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.perf_counter(), 0
        headers, id = Headers(scope=scope), "req_" + secrets.token_hex(12)
        scope["state"]["request_id"] = id
        allowed = self._allowed(headers.get("origin", ""))

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(scope=message), id, allowed)
            await send(message)

        try:
            await self._handle(headers, scope, receive, sending)
        except Exception as error:  # of any kind: the caller is told, and the server goes on
            problem = problem_of(error)
            if problem.status >= 500 and not isinstance(error, Problem):
                logger.exception("request %s failed", id)
            if not status:
                await self._show(scope, problem)(scope, receive, sending)
        finally:
            self._metrics.requests.labels(_route(scope), status).inc()
            seconds = time.perf_counter() - begun
            logger.info("%s %s %d %.3f s %s", scope["method"], _route(scope), status, seconds, id)

    async def _handle(self, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_host(headers.get("host", ""))
        if scope["method"] == "OPTIONS":
            return await self._preflight(headers)(scope, receive, send)
        self._check_key(headers, scope["path"])
        await self._app(scope, receive, send)

    def _check_host(self, given: str) -> None:
        host = _without_port(given).lower().rstrip(".")
        if host not in self._hosts and not _is_address(host):
            raise Problem(403, f"the Host {shown(given)} is not this server: --allow-host adds it")

    def _check_key(self, headers: Headers, path: str) -> None:
        if not self._keys or path in OPEN_PATHS or path.startswith("/page/"):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, in constant time; Starlette reads the bytes of headers as Latin-1.
        fits = [hmac.compare_digest(given.encode("latin-1"), key) for key in self._keys]
        if not any(fits):
            raise Problem(
                401,
                "this server asks for an API key: send it as Authorization: Bearer or x-api-key",
                code="invalid_api_key",
            )

    def _allowed(self, origin: str) -> str | None:
        """The origin, if its pages may read answers."""
        if origin and ("*" in self._policy.origins or origin in self._policy.origins):
            return origin
        return None

    def _preflight(self, headers: Headers) -> Response:
        if self._allowed(headers.get("origin", "")) is None:
            raise Problem(403, "this origin is not allowed: --allow-origin adds it")
        asked = headers.get("access-control-request-headers", "")
        allow = {
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": asked[:1000],
            "access-control-max-age": _DAY,
        }
        if "access-control-request-private-network" in headers:
            allow["access-control-allow-private-network"] = "true"
        return Response(status_code=204, headers=allow)

    def _add_headers(self, headers: MutableHeaders, id: str, origin: str | None) -> None:
        headers["x-request-id"] = headers["request-id"] = id  # OpenAI's name and Anthropic's
        headers["x-content-type-options"] = "nosniff"
        headers.add_vary_header("origin")
        if origin is not None:
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = "x-request-id, request-id, retry-after"


def _route(scope: Scope) -> str:
    """The pattern of the route that answers, so that metrics do not grow with the paths asked."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))


def _without_port(host: str) -> str:
    if host.startswith("["):
        address, closed, _ = host[1:].partition("]")
        return address if closed else ""
    return host.partition(":")[0]


def _is_address(host: str) -> bool:
    """A page is never of an address's origin by DNS, so addresses need no list."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
