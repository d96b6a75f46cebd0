"""The front door, `GET /`: the chat page for browsers, and for clients the line by which they know
a server of Ollama's API."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

RUNNING = "Ollama is running"

PAGE = Path(__file__).parent / "page" / "index.html"
"""The chat page, if this package has one."""

_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


async def front(request: Request) -> Response:
    if "text/html" in request.headers.get("accept", "") and PAGE.is_file():
        headers = {"content-security-policy": _POLICY, "vary": "accept"}
        return FileResponse(PAGE, headers=headers)
    return PlainTextResponse(RUNNING, headers={"vary": "accept"})
