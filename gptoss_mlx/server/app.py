"""The ASGI application: every route of every API, behind one guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gptoss_mlx.server import contents, health, tokens
from gptoss_mlx.server.front import front
from gptoss_mlx.server.guard import Guard
from gptoss_mlx.server.lmstudio import answers, shelf
from gptoss_mlx.server.ollama import catalog, generation, unsupported
from gptoss_mlx.server.ollama import chat as ollama_chat
from gptoss_mlx.server.ollama.shape import error_line
from gptoss_mlx.server.openai import chat, completions, models
from gptoss_mlx.server.openai.shape import error_shown
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.service import Service

Shape: TypeAlias = Callable[[Problem], object]

ROUTES: Sequence[BaseRoute] = (
    Route("/v1/chat/completions", chat.create, methods=["POST"]),
    Route("/v1/completions", completions.create, methods=["POST"]),
    Route("/v1/models", models.index),
    Route("/v1/models/{name:path}", models.show),
    Route("/", front),
    Route("/api/chat", ollama_chat.create, methods=["POST"]),
    Route("/api/generate", generation.create, methods=["POST"]),
    Route("/api/tags", catalog.tags),
    Route("/api/show", catalog.show, methods=["POST"]),
    Route("/api/ps", catalog.ps),
    Route("/api/version", catalog.version),
    Route("/api/pull", catalog.pull, methods=["POST"]),
    *(Route(path, unsupported.refuse, methods=["POST", "DELETE"]) for path in unsupported.REASONS),
    Route("/api/v0/models", shelf.index),
    Route("/api/v0/models/{name:path}", shelf.show),
    Route("/api/v0/chat/completions", answers.create_chat, methods=["POST"]),
    Route("/api/v0/completions", answers.create_text, methods=["POST"]),
    Route("/tokenize", tokens.tokenize, methods=["POST"]),
    Route("/detokenize", tokens.detokenize, methods=["POST"]),
    Route("/apply-template", tokens.apply_template, methods=["POST"]),
    Route("/openapi.json", contents.show),
    Route("/health", health.health),
    Route("/metrics", health.metrics),
)

SHAPES: Sequence[tuple[str, Shape]] = (
    ("/api/v0/", error_shown),
    ("/api/", error_line),
    ("/", error_shown),
)
"""Beginning of a path -> the shape of its errors; the first that fits counts."""


class App:
    """The application of one service. `service`: what a request's endpoint asks."""

    def __init__(self, service: Service) -> None:
        self.service = service
        router = Router(ROUTES, redirect_slashes=False, lifespan=self._lifespan)
        self._app: ASGIApp = Guard(router, service.policy, service.metrics, _show)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        scope.setdefault("state", {})
        await self._app(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncIterator[None]:
        registry = self.service.registry
        registry.load(registry.find(None))
        try:
            yield
        finally:
            await self.service.close()


def _show(scope: Scope, problem: Problem) -> Response:
    shape = next(shape for begin, shape in SHAPES if scope["path"].startswith(begin))
    shown = shape(problem)
    return JSONReply(shown, status_code=problem.status, headers=problem.headers)
