"""The ASGI application: every route of every API, behind one guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gptoss_mlx.server import contents, front, health, tokens
from gptoss_mlx.server.access_guard import AccessGuard
from gptoss_mlx.server.anthropic import catalog, messages
from gptoss_mlx.server.anthropic.shape import envelope, speaks_anthropic
from gptoss_mlx.server.containers import Containers
from gptoss_mlx.server.lmstudio import answers, shelf
from gptoss_mlx.server.ollama import catalog as ollama_catalog
from gptoss_mlx.server.ollama import chat as ollama_chat
from gptoss_mlx.server.ollama import generation, unsupported
from gptoss_mlx.server.ollama.shape import error_line
from gptoss_mlx.server.openai import chat, completions, container_files, models, responses
from gptoss_mlx.server.openai.response_store import ResponseStore
from gptoss_mlx.server.openai.shape import error_shown
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.service import Service

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
Shape: TypeAlias = Callable[[Problem], object]


def _either(anthropic: Endpoint, other: Endpoint) -> Endpoint:
    """The endpoint of a path that Anthropic's API shares with another."""

    async def endpoint(request: Request) -> Response:
        return await (anthropic if speaks_anthropic(request.scope) else other)(request)

    return endpoint


ROUTES: Sequence[BaseRoute] = (
    Route("/v1/chat/completions", chat.create, methods=["POST"]),
    Route("/v1/responses", responses.create, methods=["POST"]),
    Route("/v1/responses/{id}", responses.show, methods=["GET"]),
    Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
    Route("/v1/responses/{id}/cancel", responses.cancel, methods=["POST"]),
    Route("/v1/responses/{id}/input_items", responses.input_items, methods=["GET"]),
    Route("/v1/responses/{id}/approvals", responses.approve, methods=["POST"]),
    Route("/v1/containers/{container_id}/files", container_files.index),
    Route("/v1/containers/{container_id}/files/{file_id}", container_files.show),
    Route("/v1/containers/{container_id}/files/{file_id}/content", container_files.content),
    Route("/v1/completions", completions.create, methods=["POST"]),
    Route("/v1/messages", messages.create, methods=["POST"]),
    Route("/v1/messages/count_tokens", messages.count, methods=["POST"]),
    Route("/v1/models", _either(catalog.index, models.index)),
    Route("/v1/models/{name:path}", _either(catalog.show, models.show)),
    Route("/", front.front),
    Route("/page/{name:path}", front.part),
    Route("/api/chat", ollama_chat.create, methods=["POST"]),
    Route("/api/generate", generation.create, methods=["POST"]),
    Route("/api/tags", ollama_catalog.tags),
    Route("/api/show", ollama_catalog.show, methods=["POST"]),
    Route("/api/ps", ollama_catalog.ps),
    Route("/api/version", ollama_catalog.version),
    Route("/api/pull", ollama_catalog.pull, methods=["POST"]),
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
"""Beginning of a path -> the shape of its errors; the first that fits counts. Anthropic's aside."""


class App:
    """The application of one service. `service`: what a request's endpoint asks; `responses`: those
    of OpenAI's API that are kept; `containers`: of the tools that the server runs."""

    def __init__(self, service: Service, containers: Containers | None = None) -> None:
        self.service, self.responses = service, ResponseStore()
        self.containers = Containers() if containers is None else containers
        router = Router(ROUTES, redirect_slashes=False, lifespan=self._lifespan)
        self._app: ASGIApp = AccessGuard(router, service.policy, service.metrics, _show)

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
            await self.containers.close()
            await self.service.close()


def _show(scope: Scope, problem: Problem) -> Response:
    return JSONReply(_shape(scope)(problem), status_code=problem.status, headers=problem.headers)


def _shape(scope: Scope) -> Shape:
    if speaks_anthropic(scope):
        return partial(envelope, request_id=scope["state"]["request_id"])
    return next(shape for begin, shape in SHAPES if scope["path"].startswith(begin))
