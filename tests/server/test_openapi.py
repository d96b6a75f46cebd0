"""The OpenAPI document: every route is in it, it is valid, and answers are as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from gptoss_mlx.server.app import ROUTES, SHAPES
from gptoss_mlx.server.contents import DESCRIBED
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import Served, data_of, serving

HI = [{"role": "user", "content": "hi"}]
ANSWER = f"{ANALYSIS}Hm.{AGAIN}{FINAL}Hello.<|return|>"
CALL = " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(Scripted()) as running:
        yield running


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = served.client.get("/openapi.json").json()
    return found


def test_every_route_is_described_once() -> None:
    """A route that is added needs a line in contents.py."""
    served = {
        (method, route.path)
        for route in ROUTES
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = [(one.method, one.path) for one in DESCRIBED]
    assert set(described) == served
    assert len(set(described)) == len(described)


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validator = pytest.importorskip(
        "openapi_spec_validator", reason="openapi-spec-validator is not installed"
    )
    validator.validate(document)
    operations = [o for path in document["paths"].values() for o in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids) == len(DESCRIBED)


def schema_of(document: dict[str, Any], method: str, path: str, status: str, media: str) -> Any:
    operation = document["paths"][path][method]
    schema = operation["responses"][status]["content"][media]["schema"]
    return {**schema, "components": document["components"]}


@pytest.mark.parametrize(
    "path", ["/v1/models", "/api/tags", "/api/ps", "/api/version", "/api/v0/models", "/health"]
)
def test_catalogues_are_as_described(served: Served, document: dict[str, Any], path: str) -> None:
    value = served.client.get(path).json()
    jsonschema.validate(value, schema_of(document, "get", path, "200", "application/json"))


RAW = "so on<|return|>"
ASKED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": HI, "stream_options": {"include_usage": True}}, ANSWER),
    ("/v1/chat/completions", {"messages": HI, "tools": TOOLS, "logprobs": True}, CALL),
    ("/v1/completions", {"prompt": "And", "logprobs": 2}, RAW),
    ("/api/chat", {"messages": HI, "logprobs": True, "top_logprobs": 1}, ANSWER),
    ("/api/chat", {"messages": HI, "tools": TOOLS}, CALL),
    ("/api/generate", {"prompt": "hi"}, ANSWER),
    ("/api/v0/chat/completions", {"messages": HI}, ANSWER),
    ("/api/v0/completions", {"prompt": "And"}, RAW),
]


@pytest.mark.parametrize("number", range(len(ASKED)))
def test_answers_are_as_described(document: dict[str, Any], number: int) -> None:
    path, body, reply = ASKED[number]
    with serving(Scripted(reply, reply)) as served:
        whole = served.post(path, {**body, "stream": False})
        lines = served.stream(path, {**body, "stream": True})
    assert whole.status_code == 200, whole.text
    found = schema_of(document, "post", path, "200", "application/json")
    jsonschema.validate(whole.json(), found)
    if path in ("/api/chat", "/api/generate"):
        media, parts = "application/x-ndjson", [json.loads(line) for line in lines]
    else:
        media, parts = "text/event-stream", data_of(lines)
    assert parts
    for part in parts:
        jsonschema.validate(part, schema_of(document, "post", path, "200", media))


def test_other_answers_are_as_described(served: Served, document: dict[str, Any]) -> None:
    for path, body in (
        ("/api/show", {"model": "scripted"}),
        ("/api/pull", {"model": "scripted", "stream": False}),
        ("/tokenize", {"content": "é \U0001fadc", "with_pieces": True}),
        ("/tokenize", {"messages": HI, "return_token_strs": True}),
        ("/detokenize", {"tokens": [1, 2]}),
        ("/apply-template", {"messages": HI}),
    ):
        found = schema_of(document, "post", path, "200", "application/json")
        jsonschema.validate(served.post(path, body).json(), found)


def test_errors_are_as_described(served: Served, document: dict[str, Any]) -> None:
    """Each path's in the shape that its clients read."""
    for one in DESCRIBED:
        assert any(one.path.startswith(begin) for begin, _ in SHAPES)
        if one.method != "POST":
            continue
        response = served.client.post(one.template, content="{")
        assert response.status_code in (400, 404)  # of what does not exist
        found = schema_of(document, "post", one.template, "4XX", "application/json")
        jsonschema.validate(response.json(), found)
