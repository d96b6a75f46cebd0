"""What Ollama does and this server does not, refused by name."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from gptoss_mlx.server.problems import Problem

_STARTED = "models are named when the server is started"

REASONS: Mapping[str, str] = {
    "/api/create": _STARTED,
    "/api/copy": f"{_STARTED}: --alias adds a name",
    "/api/delete": _STARTED,
    "/api/push": "nothing leaves this machine",
    "/api/embed": "gpt-oss makes no embeddings",
    "/api/embeddings": "gpt-oss makes no embeddings",
}
"""By path."""


async def refuse(request: Request) -> Response:
    path = request.url.path
    raise Problem(400, f"{path} is not supported: {REASONS[path]}", code="unsupported")
