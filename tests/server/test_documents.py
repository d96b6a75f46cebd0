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
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import Served, serving

pytestmark = pytest.mark.slow

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

REPLY = f"{ANALYSIS}Hm.{AGAIN}{FINAL}ok<|return|>"
OPENAI = json.loads((Path(__file__).parent / "data" / "openai-paths.json").read_text())
EXAMPLES = 40


class Endless(list[Any]):
    """Replies that do not run out."""

    def pop(self, index: Any = 0) -> Any:
        return self[0]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(opened) as served:
        yield served


def opened(progress: object) -> Engine:
    """A model; a request may unload it, and the next one loads another."""
    scripted = Scripted(REPLY)
    scripted.replies = Endless(scripted.replies)
    return scripted.engine


def without_errors(described: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's document gives the inside of an error for the whole of it, which its API does not
    send."""
    for path in described["paths"].values():
        for operation in path.values():
            for status in [s for s in operation["responses"] if not s.startswith("2")]:
                del operation["responses"][status]
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
        case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])

    one()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operation", [*operations(without_errors(OPENAI))])
def test_openai_s_document(operation: Any, served: Served) -> None:
    check(operation, f"{served.url}/v1")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operation", [*operations(document(DESCRIBED))])
def test_our_document(operation: Any, served: Served) -> None:
    check(operation, served.url)
