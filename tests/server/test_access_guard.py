"""Who is let in: hosts, keys, origins and kinds of bodies, as a table; and no path leads out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gptoss_mlx.server.policy import Policy
from tests.support.scripted_model import FINAL, Scripted
from tests.support.served import Served, serving

CHAT = "/v1/chat/completions"
BODY = b'{"messages": [{"role": "user", "content": "hi"}]}'
JSON = {"content-type": "application/json"}
EVIL = {"origin": "https://evil.example"}
FRIEND = {"origin": "app://obsidian.md"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    replies = [f"{FINAL}ok<|return|>"] * 100
    policy = Policy(hosts=("my.box",), origins=("app://obsidian.md",))
    with serving(Scripted(*replies), policy=policy) as served:
        yield served


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    policy = Policy(keys=("first-key", "zweiter-schlüssel"))
    with serving(Scripted(*[f"{FINAL}ok<|return|>"] * 20), policy=policy) as served:
        yield served


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8080", 200),
        ("localhost:1", 200),
        ("LOCALHOST.", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7:8080", 200),  # an address cannot be rebound
        ("my.box:8080", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example:8080", 403),
        ("", 403),
        ("[::1", 403),
        ("a" * 5000, 403),
    ],
)
def test_a_name_that_is_not_this_machine_s_is_refused(
    served: Served, host: str, status: int
) -> None:
    """DNS rebinding: the browser believes that the attacker's name is this server."""
    response = served.client.get("/v1/models", headers={"host": host})
    assert response.status_code == status
    if status == 403:
        assert len(response.json()["error"]["message"]) < 250


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (JSON, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "application/x-www-form-urlencoded"}, 200),  # curl -d
        ({}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "text/plain", **EVIL}, 415),
        ({"content-type": "application/x-www-form-urlencoded", **EVIL}, 415),
        ({"content-type": "application/x-www-form-urlencoded", "sec-fetch-site": "none"}, 415),
        (EVIL, 415),
        ({**JSON, **EVIL}, 200),  # a page that was not asked about it cannot send this
    ],
)
def test_a_page_cannot_post_without_being_asked_about(
    served: Served, headers: dict[str, str], status: int
) -> None:
    response = served.client.post(CHAT, content=BODY, headers=headers)
    assert response.status_code == status, response.text
    assert "access-control-allow-origin" not in response.headers


def test_pages_of_other_origins_read_nothing_unless_allowed(served: Served) -> None:
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type, authorization",
        "access-control-request-private-network": "true",
    }
    refused = served.client.options(CHAT, headers={**EVIL, **asked})
    assert refused.status_code == 403
    assert not [name for name in refused.headers if name.startswith("access-control")]
    allowed = served.client.options(CHAT, headers={**FRIEND, **asked})
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == FRIEND["origin"]
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert allowed.headers["access-control-allow-private-network"] == "true"
    for path in ("/v1/models", "/nowhere"):  # errors are readable as well
        read = served.client.get(path, headers=FRIEND)
        assert read.headers["access-control-allow-origin"] == FRIEND["origin"]
        assert "origin" in read.headers["vary"].lower()
        assert "access-control-allow-origin" not in served.client.get(path, headers=EVIL).headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer first-key"}, 200),
        ({"authorization": "bearer  first-key"}, 200),
        ({"authorization": "Bearer zweiter-schlüssel".encode()}, 200),
        ({"x-api-key": "first-key"}, 200),
        ({}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer first-ke"}, 401),
        ({"authorization": "Bearer first-keyy"}, 401),
        ({"authorization": "Basic first-key"}, 401),
        ({"authorization": "first-key"}, 401),
        ({"authorization": b"Bearer \xff\xfe"}, 401),
        ({"x-api-key": ""}, 401),
        ({"cookie": "key=first-key"}, 401),
    ],
)
def test_without_a_key_nothing_is_answered(
    locked: Served, headers: dict[str, Any], status: int
) -> None:
    for path in ("/v1/models", "/metrics", "/nowhere"):
        found = locked.client.get(path, headers=headers).status_code
        assert found == (404 if path == "/nowhere" and status == 200 else status)
    assert locked.client.post(CHAT, content=BODY, headers={**JSON, **headers}).status_code == status
    assert locked.client.get("/health", headers=headers).status_code == 200
    assert "first-key" not in locked.client.get("/v1/models", headers=headers).text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", CHAT, 405),
        ("PUT", "/v1/models", 405),
        ("BREW", CHAT, 405),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/page/../../../etc/passwd", 404),
        ("GET", "/page/%2e%2e/%2e%2e/pyproject.toml", 404),
        ("GET", "/" + "x" * 20000, 404),
        ("GET", "/%00", 404),
        ("GET", "/%ff%fe", 404),
    ],
)
def test_other_paths_and_methods_are_json_errors(
    served: Served, method: str, path: str, status: int
) -> None:
    response = served.client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert response.headers["x-request-id"].startswith("req_")
    assert "root:" not in response.text


def test_every_answer_has_an_id_of_its_own(served: Served) -> None:
    ids = [served.client.get(path).headers["x-request-id"] for path in ("/health", "/x") * 3]
    assert len(set(ids)) == 6


def test_metrics_do_not_grow_with_the_paths_that_are_asked(served: Served) -> None:
    for i in range(20):
        served.client.get(f"/nowhere/{i}")
        served.client.get(f"/v1/models/none{i}")
    text = served.client.get("/metrics").text
    assert "nowhere" not in text
    assert "none1" not in text
    assert 'path="/v1/models/{name:path}",status="404"' in text
