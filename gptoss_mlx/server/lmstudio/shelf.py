"""The models, `GET /api/v0/models` and `/api/v0/models/{name}`."""

from __future__ import annotations

from typing import Literal, NotRequired

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.server.facts import facts_of
from gptoss_mlx.server.registry import ServedModel
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.service import service_of

ARCH = "gpt-oss"

FORMAT: Literal["mlx"] = "mlx"
"""That of the files: safetensors of MLX's layout, or the released ones. Clients know no third."""


class ShelfModel(TypedDict):
    """Contexts are in tokens."""

    id: str
    object: Literal["model"]
    type: Literal["llm"]
    publisher: str
    arch: str
    compatibility_type: Literal["mlx"]
    quantization: str
    state: Literal["loaded", "loading", "not-loaded"]
    max_context_length: int
    loaded_context_length: NotRequired[int]
    capabilities: list[Literal["tool_use"]]


class Shelf(TypedDict):
    object: Literal["list"]
    data: list[ShelfModel]


async def index(request: Request) -> Response:
    entries = service_of(request).registry
    shown: Shelf = {"object": "list", "data": [shelf_model(entry) for entry in entries]}
    return JSONReply(shown)


async def show(request: Request) -> Response:
    return JSONReply(shelf_model(service_of(request).registry.find(request.path_params["name"])))


def shelf_model(entry: ServedModel) -> ShelfModel:
    facts, status = facts_of(entry), entry.status
    most = facts.context if facts.config is None else facts.config.max_position_embeddings
    shown: ShelfModel = {
        "id": entry.name,
        "object": "model",
        "type": "llm",
        "publisher": facts.publisher,
        "arch": ARCH,
        "compatibility_type": FORMAT,
        "quantization": facts.quantization,
        "state": "loading" if status == "loading" else "not-loaded",
        "max_context_length": most,
        "capabilities": ["tool_use"] if facts.speaks_harmony else [],
    }
    if status == "ready":
        shown |= {"state": "loaded", "loaded_context_length": facts.context}
    return shown
