"""An OpenAPI 3.1 document, made from the types of requests and answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter

from gptoss_mlx import __version__
from gptoss_mlx.server.bodies import Body
from gptoss_mlx.server.openai.shape import ErrorShown

JSON_TYPE, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"
FILE = "application/octet-stream"

Mode: TypeAlias = Literal["validation", "serialization"]
JSONObject: TypeAlias = dict[str, object]

_REF = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


@dataclass(frozen=True)
class Described:
    """A route for the document. Types are what pydantic makes a schema of.

    gives: the answer, None where there never is one. chunks: a part of a streamed answer, in the
    media type `streamed`. errors: the body of what is refused or fails.
    """

    method: str
    path: str
    says: str
    gives: Any = None
    takes: type[Body] | None = None
    chunks: Any = None
    streamed: str = EVENTS
    media: str = JSON_TYPE
    errors: Any = ErrorShown

    @property
    def template(self) -> str:
        """The path without the converters of Starlette's."""
        return _PARAMETER.sub(r"{\1}", self.path)

    @property
    def types(self) -> Iterator[tuple[Mode, Any]]:
        if self.takes is not None:
            yield "validation", self.takes
        for kind in (self.gives, self.chunks, self.errors):
            if kind is not None:
                yield "serialization", kind


def document(routes: Sequence[Described]) -> JSONObject:
    """Raises PydanticUserError for a type that has no schema."""
    schemas, definitions = _schemas(routes)
    paths: dict[str, JSONObject] = {}
    for route in routes:
        operation = _operation(route, schemas)
        paths.setdefault(route.template, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gptoss_mlx",
            "version": __version__,
            "summary": "gpt-oss on this machine, by the APIs that assistants speak",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        # Without --api-key none is asked for.
        "security": [{}, {"bearer": []}, {"key": []}],
    }


class _Schemas:
    """Schemas of types; found: by the number of the type, which may have no hash."""

    def __init__(self, found: Mapping[tuple[int, Mode], JSONObject], kinds: Sequence[Any]) -> None:
        self._found, self._kinds = found, kinds

    def of(self, kind: Any, mode: Mode = "serialization") -> JSONObject:
        return dict(self._found[self._kinds.index(kind), mode])


def _schemas(routes: Sequence[Described]) -> tuple[_Schemas, object]:
    kinds: list[Any] = []
    wanted: list[tuple[int, Mode, TypeAdapter[Any]]] = []
    for mode, kind in (pair for route in routes for pair in route.types):
        if kind not in kinds:
            kinds.append(kind)
            wanted.append((len(kinds) - 1, mode, TypeAdapter(kind)))
    found, shared = TypeAdapter.json_schemas(wanted, ref_template=_REF)
    return _Schemas(found, kinds), shared.get("$defs", {})


def _operation(route: Described, schemas: _Schemas) -> JSONObject:
    operation: JSONObject = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.template}").strip("_"),
        "summary": route.says,
        "responses": _responses(route, schemas),
    }
    names = _PARAMETER.findall(route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if route.takes is not None:
        schema = schemas.of(route.takes, "validation")
        operation["requestBody"] = {"required": True, "content": {JSON_TYPE: {"schema": schema}}}
    return operation


def _responses(route: Described, schemas: _Schemas) -> JSONObject:
    responses: JSONObject = {}
    content: JSONObject = {}
    if route.gives is not None:
        content[route.media] = {"schema": schemas.of(route.gives)}
    if route.chunks is not None:
        content[route.streamed] = {"schema": schemas.of(route.chunks)}
    if content:
        responses["200"] = {"description": "The answer.", "content": content}
    failed = {JSON_TYPE: {"schema": schemas.of(route.errors)}}
    responses["4XX"] = {"description": "A mistake of the request.", "content": failed}
    responses["5XX"] = {"description": "The server cannot answer now.", "content": failed}
    return responses
