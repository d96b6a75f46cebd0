"""The front door, `GET /`: the chat page for browsers, and for clients the line by which they know
a server of Ollama's API.

The page is what a browser may run: nothing inline, nothing from elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from gptoss_mlx.server.problems import Problem

RUNNING = "Ollama is running"

PAGE = Path(__file__).parent / "page"

FILES = {str(path.relative_to(PAGE)): path for path in PAGE.rglob("*.*") if path.is_file()}
"""Name under /page/ -> file: nothing else can be asked for."""

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; font-src 'self'; form-action 'none'; frame-ancestors 'none';"
        " base-uri 'none'"
    ),
    "cache-control": "no-cache",  # asked for again after an update, by its ETag
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


async def front(request: Request) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        return FileResponse(PAGE / "index.html", headers={**_HEADERS, "vary": "accept"})
    return PlainTextResponse(RUNNING, headers={"vary": "accept"})


async def part(request: Request) -> Response:
    """A file of the page."""
    path = FILES.get(request.path_params["name"])
    if path is None:
        raise Problem(404, "the chat page has no such file")
    return FileResponse(path, headers=_HEADERS)
