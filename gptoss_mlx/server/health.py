"""Health and metrics: whether prompts are answered, and how it goes."""

from __future__ import annotations

from typing import Literal, NotRequired

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.server.registry import ServedModel, Status
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.service import service_of


class Health(TypedDict):
    """status: of the model that is meant where none is named; unloaded is ok, since a request loads
    it. done, total: bytes of the weights. step_seconds: how long the step under way has taken."""

    status: Literal["ok", "loading", "error"]
    model: str
    state: Status
    done: NotRequired[int]
    total: NotRequired[int]
    running: int
    waiting: int
    step_seconds: float


async def health(request: Request) -> Response:
    entry = service_of(request).registry.find(None)
    shown = _health(entry)
    return JSONReply(shown, status_code=200 if shown["status"] == "ok" else 503)


async def metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _health(entry: ServedModel) -> Health:
    state = entry.status
    shown: Health = {
        "status": "loading" if state == "loading" else "error" if state == "failed" else "ok",
        "model": entry.name,
        "state": state,
        "running": entry.running,
        "waiting": entry.waiting,
        "step_seconds": 0.0 if entry.runner is None else entry.runner.step_seconds,
    }
    if state == "loading":
        shown |= {"done": entry.done, "total": entry.total}
    return shown
