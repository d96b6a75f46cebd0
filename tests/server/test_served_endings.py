"""Calls that are ended or asked about: by a client, a person, or the end of the server."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest

from gptoss_mlx.server.policy import Policy
from tests.support.responses import PATH, ask, events, types_of
from tests.support.scripted_model import Scripted
from tests.support.served import Served
from tests.support.served_tools import (
    CALLED,
    CODE,
    DONE,
    PYTHON,
    codes,
    fake_kit,
    hanging,
    prompts,
    tooled,
)


def test_a_client_who_leaves_ends_the_call() -> None:
    kind = hanging()
    scripted = Scripted(CODE.format("a"), DONE)
    with tooled(scripted, fake_kit(kind=kind)) as served:
        body = {"input": "hi", "stream": True, "tools": [PYTHON]}
        with served.client.stream("POST", PATH, json=body) as response:
            next(line for line in response.iter_lines() if "interpreting" in line)
            assert kind.begun.wait(60)
        assert kind.ended.wait(60)
        served.wait_until(lambda: served.registry.entries[0].sequences == 0)
        assert ask(served).output_text == "Done."


def test_a_caller_who_leaves_before_the_whole_response_ends_the_call() -> None:
    kind = hanging()
    with tooled(Scripted(CODE.format("a"), DONE), fake_kit(kind=kind)) as served:
        leaving = httpx.Timeout(60, read=0.5)
        with pytest.raises(httpx.ReadTimeout):
            served.post(PATH, {"input": "hi", "tools": [PYTHON]}, timeout=leaving)
        assert kind.ended.wait(60)


def test_a_response_is_cancelled_in_a_call() -> None:
    kind = hanging()
    scripted = Scripted(CODE.format("a"), DONE)
    ended: list[Any] = []
    with tooled(scripted, fake_kit(kind=kind)) as served:
        running = threading.Thread(target=lambda: ended.extend(events(served, tools=[PYTHON])))
        running.start()
        assert kind.begun.wait(60)
        (id,) = served.listener.config.app.responses.running  # type: ignore[union-attr]
        shown = served.client.get(f"{PATH}/{id}").json()
        assert shown["output"][0]["status"] == "interpreting"
        assert served.post(f"{PATH}/{id}/cancel", {}).json()["status"] == "cancelled"
        running.join(60)
        kept = served.client.get(f"{PATH}/{id}").json()
        ask(served, "more", previous_response_id=id)
    assert ended[-1]["response"]["status"] == kept["status"] == "cancelled"
    assert kept["output"][0]["status"] != "interpreting"
    assert "interrupted" in prompts(scripted)[-1]


def test_a_server_that_ends_ends_its_calls() -> None:
    kind = hanging()
    served_: list[Served] = []

    def leave() -> None:
        with pytest.raises(httpx.HTTPError):
            served_[0].post(PATH, {"input": "hi", "tools": [PYTHON]}).raise_for_status()

    policy = Policy(grace=0.1)
    with tooled(Scripted(CODE.format("a")), fake_kit(kind=kind), policy) as served:
        served_.append(served)
        asking = threading.Thread(target=leave)
        asking.start()
        assert kind.begun.wait(60)
    assert kind.ended.wait(60)
    asking.join(60)


def approved(served: Served, answers: list[bool], **body: Any) -> list[dict[str, Any]]:
    """The events of a stream whose client has a person answer, one after another."""
    found: list[dict[str, Any]] = []
    given = {"input": "hi", "stream": True, "tools": [PYTHON], "tool_approval": "ask", **body}
    with served.client.stream("POST", PATH, json=given) as response:
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            found.append(json.loads(line.removeprefix("data: ")))
            if found[-1]["type"] == "response.tool_approval.requested":
                word = {"item_id": found[-1]["item_id"], "approve": answers.pop(0)}
                path = f"{PATH}/{found[0]['response']['id']}/approvals"
                assert httpx.post(f"{served.url}{path}", json=word).json() == word
                assert httpx.post(f"{served.url}{path}", json=word).status_code == 404
    return found


def test_a_person_is_asked_about_a_call_where_the_client_can() -> None:
    scripted = Scripted(CODE.format("a"), CODE.format("b"), DONE)
    log: list[tuple[str, str]] = []
    with tooled(scripted, fake_kit(log=log, rules={"python": "ask"})) as served:
        found = approved(served, [True, False])
    assert codes(log) == ["a"]
    first, second = found[-1]["response"]["output"][:2]
    assert (first["status"], second["status"]) == ("completed", "failed")
    assert CALLED.format("b", "The user has declined this call.") in prompts(scripted)[-1]


def test_a_client_that_cannot_ask_has_the_call_declined() -> None:
    scripted = Scripted(CODE.format("a"), DONE)
    log: list[tuple[str, str]] = []
    with tooled(scripted, fake_kit(log=log, rules={"python": "ask"})) as served:
        found = events(served, tools=[PYTHON])
        models = served.client.get("/v1/models").json()["data"]
    assert codes(log) == []
    assert "response.code_interpreter_call.interpreting" not in types_of(found)
    assert CALLED.format("a", "The user has declined this call.") in prompts(scripted)[-1]
    assert models[0]["server_tools"] == {"python": "ask"}
