"""Models in Anthropic's shape, for requests with its header, and pages of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import ModelInfo

from tests.support.scripted_model import Scripted
from tests.support.served import Served, serving

HEADERS = {"anthropic-version": "2023-06-01"}
NAMES = ["scripted", "scripted-1", "scripted-2", "claude-local"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    aliases = ("claude-local", "gpt-4*")
    with serving(*[Scripted() for _ in range(3)], aliases=aliases) as served:
        yield served


def page(served: Served, **query: Any) -> dict[str, Any]:
    response = served.client.get("/v1/models", params=query, headers=HEADERS)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_models_go_by_their_names_and_by_aliases_without_a_star(served: Served) -> None:
    found = page(served, limit=1000)
    for model in found["data"]:
        ModelInfo.model_validate(model)
        assert model["type"] == "model"
        assert model["created_at"].endswith("Z")
    assert [model["id"] for model in found["data"]] == NAMES
    assert [model["display_name"] for model in found["data"]] == [*NAMES[:3], "scripted"]
    assert found["data"][0]["max_input_tokens"] == 4096
    assert (found["has_more"], found["first_id"], found["last_id"]) == (
        False,
        "scripted",
        "claude-local",
    )


def test_without_the_header_they_have_openais_shape(served: Served) -> None:
    for path in ("/v1/models", "/v1/models/scripted"):
        assert served.client.get(path).json()["object"] in ("list", "model")


@pytest.mark.parametrize(
    ("query", "names", "has_more"),
    [
        ({"limit": 2}, NAMES[:2], True),
        ({"limit": 2, "after_id": "scripted-1"}, NAMES[2:], False),
        ({"limit": 1, "after_id": "scripted-1"}, NAMES[2:3], True),
        ({"after_id": "claude-local"}, [], False),
        ({"limit": 2, "before_id": "claude-local"}, NAMES[1:3], True),
        ({"limit": 2, "before_id": "scripted-1"}, NAMES[:1], False),
    ],
)
def test_a_page(served: Served, query: dict[str, Any], names: list[str], has_more: bool) -> None:
    found = page(served, **query)
    assert [model["id"] for model in found["data"]] == names
    assert found["has_more"] is has_more
    assert found["first_id"] == (names[0] if names else None)
    assert found["last_id"] == (names[-1] if names else None)


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": "x"}, {"after_id": "nobody"}, {"before_id": "nobody"}]
)
def test_a_wrong_query_is_refused_by_name(served: Served, query: dict[str, Any]) -> None:
    response = served.client.get("/v1/models", params=query, headers=HEADERS)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert next(iter(query)) in error["message"]


def test_one_model_by_any_of_its_names(served: Served) -> None:
    for name, id in (
        ("scripted-2", "scripted-2"),
        ("claude-local", "claude-local"),
        ("claude-opus-4-5", "scripted"),
        ("scripted:latest", "scripted"),
    ):
        found = served.client.get(f"/v1/models/{name}", headers=HEADERS).json()
        assert (found["id"], found["type"]) == (id, "model")
    missing = served.client.get("/v1/models/nobody", headers=HEADERS)
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
