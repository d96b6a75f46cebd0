"""The life of a request: it begins at once, waits in a queue, is kept alive, and ends when nobody
reads it any more."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import httpx
import pytest

from gptoss_mlx.engine.loop import Loop
from gptoss_mlx.errors import CheckpointError, MemoryBudgetError
from gptoss_mlx.server import mailbox
from gptoss_mlx.server.policy import Policy
from tests.support.gate import Gate
from tests.support.scripted_model import FINAL, Scripted
from tests.support.served import LONG, Served, data_of, serving

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
LONG_REPLY = FINAL + "word " * 3000 + "<|return|>"
SHORT = f"{FINAL}ok<|return|>"


def raw(served: Served, body: dict[str, Any], path: str = PATH) -> socket.socket:
    """A connection that has sent a request."""
    connection = socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    connection.sendall(head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data)
    connection.settimeout(LONG)
    return connection


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("words", [1, 500], ids=["answering", "reading"])
def test_34_a_disconnect_cancels_within_a_step(gate: Gate, stream: bool, words: int) -> None:
    """While a token is computed, and while the prompt is read."""
    scripted = Scripted(LONG_REPLY, context=8192)
    with serving(scripted) as served:
        gate.close()
        text = "word " * words
        messages = [{"role": "user", "content": text}]
        connection = raw(served, {"messages": messages, "stream": stream})
        gate.let(3)
        entry = served.registry.find(None)
        assert entry.sequences == 1
        connection.close()
        served.wait_until(lambda: entry.sequences == 0)
        before = scripted.count("decode") + scripted.count("prefill")
        gate.open()
        served.wait_until(lambda: scripted.engine.finished)
        assert scripted.count("decode") + scripted.count("prefill") <= before + 1


def test_headers_come_before_the_prompt_is_read(gate: Gate) -> None:
    with serving(Scripted(SHORT), policy=Policy(beat_seconds=0.05)) as served:
        gate.close()
        connection = raw(served, {"messages": HI, "stream": True})
        seen = b""
        while seen.count(b": waiting") < 3:  # and it is kept alive by the clock
            seen += connection.recv(4096)
        assert seen.startswith(b"HTTP/1.1 200 OK")
        assert b"text/event-stream" in seen
        gate.open()
        while b"[DONE]" not in seen:
            seen += connection.recv(4096)
        connection.close()


def test_progress_with_a_prompt_is_told() -> None:
    with serving(Scripted(SHORT, chunk=16)) as served:
        lines = served.stream(
            PATH, {"messages": [{"role": "user", "content": "word " * 100}], "stream": True}
        )
    told = [line for line in lines if line.startswith(": prefill ")]
    assert len(told) > 3
    done, total = told[-1].removeprefix(": prefill ").split("/")
    assert int(done) == int(total) - 1


def test_a_full_queue_is_a_503_that_says_when_to_come_back(gate: Gate) -> None:
    scripted = Scripted(*[SHORT] * 10)
    with serving(scripted, policy=Policy(max_queue=2)) as served:
        gate.close()
        rows = served.registry.find(None).rows
        connections = [raw(served, {"messages": HI}) for _ in range(rows + 2)]
        served.wait_until(lambda: served.registry.find(None).sequences == rows + 2)
        refused = served.post(PATH, {"messages": HI})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert served.client.get("/health").json()["waiting"] == 2
        gate.open()
        for connection in connections:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            connection.close()
        served.wait_until(lambda: served.registry.find(None).sequences == 0)
        assert served.post(PATH, {"messages": HI}).status_code == 200


def test_33_a_dead_loop_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails who waits, and everybody who comes after; none waits for ever."""
    with serving(Scripted(SHORT, SHORT)) as served:
        assert served.client.get("/health").status_code == 200

        def dies(loop: Loop) -> None:
            raise SystemError("the loop itself is broken")

        monkeypatch.setattr(Loop, "step", dies)
        response = served.post(PATH, {"messages": HI})
        assert response.status_code == 503
        served.wait_until(lambda: served.client.get("/health").status_code == 503)
        assert served.client.get("/health").json()["status"] == "error"
        assert served.post(PATH, {"messages": HI}).status_code == 503
        assert served.client.get("/v1/models").json()["data"][0]["status"] == "failed"


def test_while_the_model_loads_it_is_told_how_far_it_is() -> None:
    go_on = threading.Event()

    def opening(progress: Any) -> Any:
        progress(3, 10)
        assert go_on.wait(LONG)
        return Scripted(SHORT).engine

    with serving(opening, ready=False) as served:
        served.wait_until(lambda: served.client.get("/health").json().get("done") == 3)
        health = served.client.get("/health")
        assert health.status_code == 503
        assert (health.json()["status"], health.json()["total"]) == ("loading", 10)
        response = served.post(PATH, {"messages": HI})
        assert response.status_code == 503
        assert "30 %" in response.json()["error"]["message"]
        assert response.headers["retry-after"]
        go_on.set()
        served.wait_until(lambda: served.client.get("/health").status_code == 200)
        assert served.post(PATH, {"messages": HI}).status_code == 200


def test_a_model_that_cannot_be_loaded_is_told_without_its_paths() -> None:
    def opening(progress: Any) -> Any:
        raise CheckpointError("/home/me/secret/model.safetensors: truncated")

    with serving(opening) as served:
        assert served.client.get("/health").json()["status"] == "error"
        response = served.post(PATH, {"messages": HI})
        assert response.status_code == 503
        assert "secret" not in response.text


def test_a_model_that_nobody_asks_is_unloaded_and_comes_back() -> None:
    made: list[Scripted] = []

    def opening(progress: Any) -> Any:
        made.append(Scripted(SHORT))
        return made[-1].engine

    with serving(opening, policy=Policy(keep_alive=0)) as served:
        entry = served.registry.find(None)
        served.wait_until(lambda: entry.status == "unloaded")  # nobody has asked for it
        served.wait_until(lambda: made[0].engine.is_closed)
        assert served.post(PATH, {"messages": HI}).status_code == 200
        served.wait_until(lambda: entry.status == "unloaded")
        served.wait_until(lambda: made[1].engine.is_closed)
        assert served.client.get("/health").status_code == 200  # a request loads it
        assert served.post(PATH, {"messages": HI}).status_code == 200
    assert len(made) == 3


def test_a_second_model_takes_the_place_of_the_idle_one() -> None:
    """Under one budget; one that answers is waited for."""
    opened: list[str] = []
    held = threading.Event()

    def first(progress: Any) -> Any:
        opened.append("first")
        return Scripted(SHORT, SHORT).engine

    def second(progress: Any) -> Any:
        opened.append("second")
        if not served.registry.entries[0].status == "unloaded":
            raise MemoryBudgetError("no room beside the other")
        held.set()
        return Scripted(SHORT).engine

    with serving(first, second) as served:
        response = served.post(PATH, {"messages": HI, "model": "scripted-1"})
        assert response.status_code == 200, response.text
        assert response.json()["model"] == "scripted-1"
        assert held.is_set()
        assert [e.status for e in served.registry] == ["unloaded", "ready"]
        assert served.post(PATH, {"messages": HI, "model": "scripted"}).status_code == 200
    assert opened[:3] == ["first", "second", "second"]


def test_a_reader_that_is_slow_lets_its_answer_rest(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And others go on."""
    monkeypatch.setattr(mailbox, "ROOM", 50)
    scripted = Scripted(FINAL + "word " * 20000 + "<|return|>", SHORT, context=65536)
    with serving(scripted) as served:
        connection = raw(served, {"messages": HI, "stream": True})
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def resting() -> bool:
            return scripted.engine.is_closed or not scripted.engine.is_ready

        served.wait_until(resting)
        taken = gate.taken
        assert served.post(PATH, {"messages": HI}).status_code == 200
        assert scripted.count("read") < 20000
        assert gate.taken > taken
        connection.close()
        served.wait_until(lambda: served.registry.find(None).sequences == 0)


def test_sixty_four_at_once_are_answered() -> None:
    replies = [f"{FINAL}ok<|return|>"] * 64
    with serving(Scripted(*replies)) as served:
        found: list[int] = []

        def one(i: int) -> None:
            with httpx.Client(base_url=served.url, timeout=LONG, trust_env=False) as client:
                body = {"messages": HI, "stream": bool(i % 2)}
                response = client.post(PATH, json=body)
                text = response.text
                whole = data_of(text.splitlines()) if i % 2 else [response.json()]
                found.append(response.status_code if whole else 0)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert found == [200] * 64
