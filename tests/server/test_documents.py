"""Requests made from OpenAI's document of its API and from ours: none is a failure of the server,
and what it answers is as the document says.

OpenAI's is reduced to the paths that are served here (from openai/openai-openapi, MIT).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.server.contents import DESCRIBED
from gptoss_mlx.server.openapi import document
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Endless, Scripted
from tests.support.served import Served, serving

pytestmark = pytest.mark.slow

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

REPLY = f"{ANALYSIS}Hm.{AGAIN}{FINAL}ok<|return|>"
OPENAI = json.loads((Path(__file__).parent / "data" / "openai-paths.json").read_text())
EXAMPLES = 40


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(opened) as served:
        yield served


def opened(progress: object) -> Engine:
    """A model; a request may unload it, and the next one loads another."""
    scripted = Scripted(REPLY)
    scripted.replies = Endless(scripted.replies)
    return scripted.engine


def as_sent(described: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's document as its API keeps it: an error is more than its inside, which is all that
    the document gives, and some values that are not given are null."""
    for path in described["paths"].values():
        for operation in path.values():
            for status in [s for s in operation["responses"] if not s.startswith("2")]:
                del operation["responses"][status]
    schemas = described["components"]["schemas"]
    properties = schemas["ModelResponseProperties"]["properties"]
    properties["user"] = {"anyOf": [properties["user"], {"type": "null"}]}
    choice = schemas["CreateCompletionResponse"]["properties"]["choices"]["items"]
    (logprobs,) = (
        one for one in choice["properties"]["logprobs"]["anyOf"] if one.get("type") == "object"
    )
    top = logprobs["properties"]["top_logprobs"]
    logprobs["properties"]["top_logprobs"] = {"anyOf": [top, {"type": "null"}]}
    return described


def operations(described: dict[str, Any]) -> Iterator[Any]:
    schema = schemathesis.openapi.from_dict(described)
    for result in schema.get_all_operations():
        operation = result.ok()
        name = f"{operation.method.upper()} {operation.path}"
        yield pytest.param(operation, id=name)


def check(operation: Any, base: str) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def one(case: Any) -> None:
        response = case.call(base_url=base, timeout=60)
        checks = [not_a_server_error, response_schema_conformance]
        if response.headers["content-type"][0].startswith("text/event-stream"):
            checks.pop()  # the schema is that of an event's data, not of the event
        case.validate_response(response, checks=checks)

    one()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operation", [*operations(as_sent(OPENAI))])
def test_openai_s_document(operation: Any, served: Served) -> None:
    check(operation, f"{served.url}/v1")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operation", [*operations(document(DESCRIBED))])
def test_our_document(operation: Any, served: Served) -> None:
    check(operation, served.url)
