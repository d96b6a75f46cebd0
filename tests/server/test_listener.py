"""Connections that hang, and the end of the server."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest

from gptoss_mlx.errors import OptionError
from gptoss_mlx.server import listener
from gptoss_mlx.server.listener import bind
from gptoss_mlx.server.policy import Policy
from tests.support.gate import Gate
from tests.support.scripted_model import FINAL, Scripted
from tests.support.served import LONG, Served, serving

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


def connect(served: Served) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
    connection.settimeout(LONG)
    return connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side ends the connection."""
    data = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    connection.close()
    return data


@pytest.mark.parametrize(
    "begun", [b"", b"GET / HTTP/1.1\r\nhost: localh", b"\r\n", b"\x16\x03\x01"]
)
def test_half_a_head_is_not_waited_for_for_ever(begun: bytes) -> None:
    with serving(Scripted(), policy=Policy(head_seconds=0.2)) as served:
        connection = connect(served)
        connection.sendall(begun)
        assert rest(connection)[:12] in (b"", b"HTTP/1.1 400")
        # Neither after a request that was answered.
        connection = connect(served)
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: loc")
        rest(connection)


def test_an_answer_may_take_longer_than_a_head(gate: Gate) -> None:
    with serving(Scripted(f"{FINAL}ok<|return|>"), policy=Policy(head_seconds=0.1)) as served:
        gate.close()
        opener = threading.Timer(0.5, gate.open)
        opener.start()
        assert served.post(PATH, {"messages": HI}).status_code == 200
        opener.join()


@pytest.mark.parametrize(
    "head",
    [
        b"x: " + b"y" * (1 << 20),
        b"".join(b"x-%d: y\r\n" % i for i in range(100_000)),
        b"content-length: 1\r\ncontent-length: 2",
        b"content-length: -1",
        b"content-length: 1\r\ntransfer-encoding: chunked",
        b"bad header",
        b"a\0b: c",
    ],
    ids=["long", "many", "two lengths", "negative", "smuggled", "no colon", "zero byte"],
)
def test_a_flood_of_headers_or_bad_ones_end_the_connection(head: bytes) -> None:
    with serving(Scripted()) as served:
        connection = connect(served)
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n\r\n{}")
        answer = rest(connection)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 40"), answer[:200]
        assert served.client.get("/health").status_code == 200


def test_a_reader_that_takes_nothing_is_given_up() -> None:
    scripted = Scripted(FINAL + "word " * 20000 + "<|return|>", context=65536)
    with serving(scripted, policy=Policy(stall_seconds=0.2)) as served:
        connection = connect(served)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = b'{"messages": [{"role": "user", "content": "hi"}], "stream": true}'
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        entry = served.registry.find(None)
        served.wait_until(lambda: entry.sequences == 1)
        served.wait_until(lambda: entry.sequences == 0)
        served.wait_until(lambda: scripted.engine.finished)
        assert scripted.count("read") < 20000
        connection.close()


def test_more_connections_than_allowed_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CONNECTIONS", 3)
    with serving(Scripted()) as served:
        held = [connect(served) for _ in range(5)]
        served.wait_until(lambda: len(served.listener.server_state.connections) >= 5)
        last = connect(served)
        last.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert last.recv(100).startswith(b"HTTP/1.1 503")
        for connection in (*held, last):
            connection.close()
        served.wait_until(lambda: len(served.listener.server_state.connections) < 3)
        assert served.client.get("/health").status_code == 200


def test_an_address_that_is_taken_or_none_is_one_line() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match=f"cannot listen on '127.0.0.1', port {port}: "):
            bind("127.0.0.1", port)
    for host in ("no such host", "256.1.1.1", "x" * 300, "\0"):
        with pytest.raises(OptionError, match="cannot listen on"):
            bind(host, 0)


@pytest.mark.parametrize("grace", [0.0, LONG], ids=["no grace", "grace"])
def test_when_it_ends_what_runs_is_finished_within_the_grace(gate: Gate, grace: float) -> None:
    scripted = Scripted(f"{FINAL}one two three<|return|>")
    lines: list[str] = []
    with serving(scripted, policy=Policy(grace=grace)) as served:
        gate.close()

        def read() -> None:
            with served.client.stream(
                "POST", PATH, json={"messages": HI, "stream": True}
            ) as answer:
                try:
                    lines.extend(answer.iter_lines())
                except Exception as error:  # of any kind: the connection was ended
                    lines.append(type(error).__name__)

        reader = threading.Thread(target=read)
        reader.start()
        gate.let(2)
        served.listener.should_exit = True
        if not grace:
            reader.join(LONG)
        gate.open()
        reader.join(LONG)
    assert ("data: [DONE]" in lines) == bool(grace), lines
    assert scripted.engine.is_closed
