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
from gptoss_mlx.server.text_guard import TextGuard


class GuardHealth(TypedDict):
    """state: of the model that judges. judged, blocked, failed: texts so far; failed are those that
    got no label."""

    model: str
    state: Status
    judged: int
    blocked: int
    failed: int


class Health(TypedDict):
    """status: of the model that is meant where none is named, and of the one that judges; unloaded
    is ok, since a request loads it. done, total: bytes of the weights. step_seconds: how long the
    step under way has taken."""

    status: Literal["ok", "loading", "error"]
    model: str
    state: Status
    done: NotRequired[int]
    total: NotRequired[int]
    running: int
    waiting: int
    step_seconds: float
    guard: NotRequired[GuardHealth]


async def health(request: Request) -> Response:
    service = service_of(request)
    entry = service.registry.find(None)
    shown = _health(entry)
    if service.guard is not None:
        judge = service.registry.judge or entry
        shown["guard"] = _guard_health(service.guard, judge)
        if judge.status in ("loading", "failed") and shown["status"] == "ok":
            shown["status"] = "loading" if judge.status == "loading" else "error"
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


def _guard_health(guard: TextGuard, judge: ServedModel) -> GuardHealth:
    failed = sum(count for (_, label), count in guard.judged.items() if label == "failed")
    return {
        "model": judge.name,
        "state": judge.status,
        "judged": sum(guard.judged.values()),
        "blocked": sum(guard.blocked.values()),
        "failed": failed,
    }
