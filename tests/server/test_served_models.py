"""Other models as tools of the server: for clients that ask for them, by the person's rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gptoss_mlx.server.toolkit import Toolkit
from gptoss_mlx.tools.models.endpoint import Endpoint
from gptoss_mlx.tools.models.server import ModelServer
from tests.server.test_served_endings import approved
from tests.support.endpoint import EndpointServer, saying
from tests.support.endpoint import serving as endpoint_serving
from tests.support.responses import PATH, ask, events
from tests.support.scripted_model import Scripted
from tests.support.served_mcp import FORGED, RAN, written
from tests.support.served_tools import DONE, check_documented, prompts, tooled

BIG = {"type": "mcp", "server_label": "ask_big"}
NEVER = {**BIG, "require_approval": "never"}
QUESTION = written("ask_big", question="Capital?")


@pytest.fixture
def endpoint() -> Iterator[EndpointServer]:
    with endpoint_serving() as served:
        yield served


def kit_of(endpoint: EndpointServer, rule: Any = "ask") -> Toolkit:
    server = ModelServer(Endpoint("big", endpoint.url, "m", "secret-key-1"))
    return Toolkit(servers={server.name: server}, rules={server.name: rule})


def test_a_client_that_does_not_ask_for_them_gets_none(endpoint: EndpointServer) -> None:
    scripted = Scripted(DONE)
    with tooled(scripted, kit_of(endpoint)) as served:
        assert [item.type for item in ask(served).output] == ["message"]
        models = served.client.get("/v1/models").json()["data"]
    assert "ask_big" not in prompts(scripted)[0]
    assert models[0]["server_tools"] == {"ask_big": "ask"}


def test_the_rule_of_the_file_is_the_clients_too(endpoint: EndpointServer) -> None:
    """Whatever the client says of approval, nothing is sent before a person has agreed."""
    scripted = Scripted(QUESTION, DONE)
    endpoint.act = saying(f"Paris. {FORGED} secret-key-1")
    with tooled(scripted, kit_of(endpoint)) as served:
        first = ask(served, tools=[NEVER])
        assert [item.type for item in first.output] == ["mcp_list_tools", "mcp_approval_request"]
        assert endpoint.asked == []
        request = first.output[1]
        word = {"type": "mcp_approval_response", "approve": True}
        given = [{**word, "approval_request_id": request.id}]
        found = events(served, given, tools=[NEVER], previous_response_id=first.id)
    check_documented(found)
    call = found[-1]["response"]["output"][0]
    said = f"Paris. {FORGED} [key]"
    assert (call["server_label"], call["name"], call["output"]) == ("ask_big", "ask_big", said)
    assert [body["messages"] for _, _, body in endpoint.asked] == [
        [{"role": "user", "content": "Capital?"}]
    ]
    ran = RAN.format(name="ask_big", arguments='{"question": "Capital?"}', result=said)
    assert prompts(scripted)[-1].endswith(ran + "<|start|>assistant")


def test_with_the_rule_allow_it_is_the_clients_wish(endpoint: EndpointServer) -> None:
    scripted = Scripted(QUESTION, DONE, QUESTION)
    with tooled(scripted, kit_of(endpoint, "allow")) as served:
        output = ask(served, tools=[NEVER]).output
        asked = ask(served, tools=[BIG]).output
    assert output[1].type == "mcp_call"
    assert output[1].output == "Paris."
    assert asked[1].type == "mcp_approval_request"


def test_on_the_page_a_person_is_asked(endpoint: EndpointServer) -> None:
    scripted = Scripted(QUESTION, QUESTION, DONE)
    with tooled(scripted, kit_of(endpoint)) as served:
        found = approved(served, [False, True], tools=[NEVER])
    statuses = [i["status"] for i in found[-1]["response"]["output"] if i["type"] == "mcp_call"]
    assert statuses == ["failed", "completed"]
    assert len(endpoint.asked) == 1


@contextmanager
def held(endpoint: EndpointServer) -> Iterator[None]:
    """The endpoint does not answer before the block ends."""
    endpoint.act = lambda handler: endpoint.stopping.wait(60) and None
    yield
    endpoint.stopping.set()


def test_a_response_that_is_cancelled_ends_the_question(endpoint: EndpointServer) -> None:
    scripted = Scripted(QUESTION)
    body = {"input": "hi", "stream": True, "tools": [NEVER]}
    with (
        tooled(scripted, kit_of(endpoint, "allow")) as served,
        held(endpoint),
        served.client.stream("POST", PATH, json=body) as response,
    ):
        lines = response.iter_lines()
        next(line for line in lines if "mcp_call_arguments.done" in line)
        served.wait_until(lambda: bool(endpoint.asked))
        (id,) = served.listener.config.app.responses.running  # type: ignore[union-attr]
        served.post(f"{PATH}/{id}/cancel", {})
        *_, last = (line for line in lines if line.startswith("data: "))
    assert '"status":"cancelled"' in last
