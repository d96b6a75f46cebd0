"""Bodies that are no requests: each gets one short line, and nothing of the server's is lost."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from gptoss_mlx.server.policy import Policy
from tests.support.scripted_model import FINAL, Scripted
from tests.support.served import Served, serving

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    policy = Policy(body_bytes=LIMIT, body_seconds=0.2)
    with serving(Scripted(*[f"{FINAL}ok<|return|>"] * 20), policy=policy) as served:
        yield served


def nested(depth: int) -> bytes:
    return b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"


def schema_of(depth: int) -> bytes:
    schema: object = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "x"}], "response_format": asked}
    return json.dumps(body).encode()


BAD: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"messages": "\xff"}',
    "a lone surrogate": rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "NaN": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "infinite": b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    "a huge integer": b'{"messages": [{"role": "user", "content": "x"}], "seed": 1%s}'
    % (b"0" * 5000),
    "deep": nested(100_000),
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a deep schema": schema_of(150),
    "two values": b'{"messages": []} {}',
    "no messages": b"{}",
    "a long wrong value": json.dumps({"messages": "x" * 100_000}).encode(),
    "messages that are none": b'{"messages": [1]}',
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_body_is_a_400_in_one_short_line(case: str, served: Served) -> None:
    response = served.client.post(CHAT, content=BAD[case], headers=JSON)
    assert response.status_code == 400, response.text
    message = response.json()["error"]["message"]
    assert len(message) < 400
    assert "\n" not in message


def test_more_bytes_than_allowed_are_not_read(served: Served) -> None:
    told = {**JSON, "content-length": str(100 << 20)}
    with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as raw:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in told.items())
        raw.sendall(head.encode() + b"\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")  # before any of the body was sent

    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (LIMIT // 16)

    assert served.client.post(CHAT, content=endless(), headers=JSON).status_code == 413


def test_a_body_that_does_not_go_on_is_given_up(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as raw:
        raw.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            'content-length: 1000\r\n\r\n{"messages"'.encode()
        )
        raw.settimeout(60)
        assert raw.recv(100).startswith(b"HTTP/1.1 408 ")


def test_the_largest_that_is_allowed_is_read(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "metadata": {"x": "y" * (LIMIT // 2)}}
    response = served.client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
