"""Models, `GET /v1/models` and `/v1/models/{name}`."""

from __future__ import annotations

from typing import Literal, NotRequired

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.server.registry import ServedModel, Status
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.service import service_of


class ModelShown(TypedDict):
    """context_length: tokens; and the same under the name of vLLM's clients."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    status: Status
    context_length: NotRequired[int]
    max_model_len: NotRequired[int]


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelShown]


async def index(request: Request) -> Response:
    models: ModelList = {
        "object": "list",
        "data": [model_shown(entry) for entry in service_of(request).registry],
    }
    return JSONReply(models)


async def show(request: Request) -> Response:
    return JSONReply(model_shown(service_of(request).registry.find(request.path_params["name"])))


def model_shown(entry: ServedModel) -> ModelShown:
    shown: ModelShown = {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "gptoss-mlx",
        "status": entry.status,
    }
    if entry.context is not None:
        shown |= {"context_length": entry.context, "max_model_len": entry.context}
    return shown
