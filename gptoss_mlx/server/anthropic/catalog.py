"""Models as Anthropic's clients list them, `GET /v1/models` and `/v1/models/{name}`.

A model goes by its own name, and by each that was given with `--alias`: a client that shows only
names which begin with "claude" is shown one that the server's owner chose.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, NotRequired

from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.bodies import Body
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.registry import Alias, Registry, ServedModel
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.service import service_of

CLAUDE = Alias("claude*")
"""Names that clients ask for when they can be told no other."""


class ModelInfo(TypedDict):
    """max_input_tokens, max_tokens: those of the context, once the model was loaded."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: NotRequired[int]
    max_tokens: NotRequired[int]


class ModelPage(TypedDict):
    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


class PageQuery(Body):
    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    before_id: str | None = None
    after_id: str | None = None


def model_for(registry: Registry, name: str | None) -> str | None:
    """The name of the model that answers to a name, or None for the first. Raises Problem."""
    try:
        return registry.find(name).name
    except Problem:
        if name is not None and CLAUDE.fits(name.lower()):
            return None
        raise


async def index(request: Request) -> Response:
    query, names = _query(request), _names(service_of(request).registry)
    ids = list(names)
    first = _place(ids, query.after_id, "after_id") + 1 if query.after_id else 0
    last = _place(ids, query.before_id, "before_id") if query.before_id else len(ids)
    page, has_more = ids[first:last], last - first > query.limit
    page = page[-query.limit :] if query.before_id else page[: query.limit]
    models: ModelPage = {
        "data": [_info(id, names[id]) for id in page],
        "has_more": has_more,
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }
    return JSONReply(models)


async def show(request: Request) -> Response:
    registry, name = service_of(request).registry, request.path_params["name"]
    names = _names(registry)
    if name in names:
        return JSONReply(_info(name, names[name]))
    entry = registry.find(model_for(registry, name))
    return JSONReply(_info(entry.name, entry))


def _names(registry: Registry) -> dict[str, ServedModel]:
    """Every model by its name, then by its aliases."""
    names = {entry.name: entry for entry in registry}
    for alias in registry.aliases:
        if not alias.name.endswith("*"):
            names.setdefault(alias.name, registry.find(alias.name))
    return names


def _info(id: str, entry: ServedModel) -> ModelInfo:
    info: ModelInfo = {
        "type": "model",
        "id": id,
        "display_name": entry.name,
        "created_at": datetime.fromtimestamp(entry.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
    }
    if entry.context is not None:
        info |= {"max_input_tokens": entry.context, "max_tokens": entry.context}
    return info


def _query(request: Request) -> PageQuery:
    try:
        return PageQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])
        said = f"{name}: {first['msg']}, not {shown(first['input'])}"
        raise Problem(400, said, param=name) from None


def _place(ids: list[str], id: str, param: str) -> int:
    if id not in ids:
        raise Problem(400, f"{param}: no model is called {shown(id)}", param=param)
    return ids.index(id)
