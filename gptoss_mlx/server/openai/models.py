"""Models, `GET /v1/models` and `/v1/models/{name}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.server.containers import containers_of
from gptoss_mlx.server.registry import ServedModel, Status
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.service import service_of
from gptoss_mlx.server.toolkit import Toolkit
from gptoss_mlx.tools.approval import Rule


class ModelShown(TypedDict):
    """context_length: tokens; and the same under the name of vLLM's clients. server_tools: those
    that the server runs for it, with their rules."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    status: Status
    context_length: NotRequired[int]
    max_model_len: NotRequired[int]
    server_tools: NotRequired[Mapping[str, Rule]]


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelShown]


async def index(request: Request) -> Response:
    kit = containers_of(request).kit
    models: ModelList = {
        "object": "list",
        "data": [model_shown(entry, kit) for entry in service_of(request).registry],
    }
    return JSONReply(models)


async def show(request: Request) -> Response:
    entry = service_of(request).registry.find(request.path_params["name"])
    return JSONReply(model_shown(entry, containers_of(request).kit))


def model_shown(entry: ServedModel, kit: Toolkit) -> ModelShown:
    shown: ModelShown = {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "gptoss-mlx",
        "status": entry.status,
    }
    if entry.context is not None:
        shown |= {"context_length": entry.context, "max_model_len": entry.context}
    if kit.names:
        shown["server_tools"] = {name: kit.rule(name) for name in kit.names}
    return shown
