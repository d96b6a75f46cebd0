"""Calls of MCP servers that a person is asked about: in another request, or while the response is
made."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from openai import AsyncOpenAI

from gptoss_mlx.tools.agent import Agent
from gptoss_mlx.tools.approval import Approval
from tests.server.test_served_endings import approved
from tests.support.responses import PATH, ask, events, function
from tests.support.scripted_model import AGAIN, Scripted, encoding
from tests.support.served import Served
from tests.support.served_mcp import ASKED, FORGED, ODD, RAN, mcp_kit, written
from tests.support.served_tools import (
    DONE,
    THOUGHT,
    check_documented,
    codes,
    fake_kit,
    prompts,
    tooled,
)
from tests.tools.mcp.conftest import Start, odd
from tests.tools.mcp.conftest import start as start

ECHO = written("odd_echo", text_="hello")
DECLINED = "The user has declined this call."
USER = {"role": "user", "content": "hi"}


def of(output: Any, kind: str) -> list[Any]:
    return [item for item in output if item["type"] == kind]


def asked_first(served: Served, **body: Any) -> tuple[str, list[Any], Any]:
    """The id of a response that ends with a request for approval, its output, and the request."""
    found = events(served, tools=[ASKED], **body)
    check_documented(found)
    response = found[-1]["response"]
    assert response["status"] == "completed"
    (request,) = of(response["output"], "mcp_approval_request")
    assert not of(response["output"], "mcp_call")
    return response["id"], response["output"], request


def answer(request: Any, approve: bool, **more: Any) -> dict[str, Any]:
    id = request["id"]
    return {"type": "mcp_approval_response", "approval_request_id": id, "approve": approve, **more}


@pytest.mark.parametrize("way", ["kept", "sent back to a server that was started anew"])
@pytest.mark.parametrize("approve", [True, False])
def test_a_person_is_asked_between_two_responses(way: str, approve: bool, start: Start) -> None:
    """As the API has it unless the client says otherwise; what the model reads is what it reads in
    the agent's loop."""
    call = [*encoding().encode_special(THOUGHT), *written("odd_echo", text_=FORGED)]
    alone, before, after = Scripted(call, DONE), Scripted(call, DONE), Scripted(DONE)
    approval = Approval({"odd": "ask"}, lambda _: approve)
    list(Agent(alone.engine, start(odd()).tools, approval=approval).run("hi"))
    with mcp_kit(odd()) as kit, tooled(before, kit) as served:
        id, output, request = asked_first(served, store=way == "kept")
        assert (request["server_label"], request["name"]) == ("odd", "echo")
        given = [answer(request, approve)]
        if way == "kept":
            found = events(served, given, tools=[ASKED], previous_response_id=id)
    if way != "kept":
        with mcp_kit(odd()) as kit, tooled(after, kit) as served:
            found = events(served, [USER, *output, *given], tools=[ASKED])
    check_documented(found)
    ran = of(found[-1]["response"]["output"], "mcp_call")
    assert [(item["output"], item["approval_request_id"]) for item in ran] == (
        [(FORGED, request["id"])] if approve else []
    )
    read = [*before.samplings, *after.samplings][-1][2]
    assert read == alone.samplings[-1][2]


def test_a_reason_is_read_and_a_question_without_an_answer_too() -> None:
    scripted = Scripted(ECHO, DONE, DONE, DONE)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        id, _, request = asked_first(served)
        no = answer(request, False, reason="Not today.")
        declined = ask(served, [no], tools=[ASKED], previous_response_id=id)
        ask(served, "well?", tools=[ASKED], previous_response_id=id)
        ask(served, "well?", tools=[ASKED], previous_response_id=declined.id)
    texts = [f"{DECLINED} Not today.", "The user was asked about this call, and has not answered."]
    for prompt, text in zip(prompts(scripted)[1:], [*texts, texts[0]], strict=True):
        ran = RAN.format(name="odd_echo", arguments='{"text_": "hello"}', result=text)
        assert ran in prompt


def test_what_was_agreed_to_runs_once() -> None:
    """The answer stays in a conversation that is sent back, and the call after it."""
    scripted = Scripted(ECHO, DONE, written("f"), DONE)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        _, output, request = asked_first(served, store=False)
        tools = [ASKED, function("f")]
        given = [USER, *output, answer(request, True)]
        second = ask(served, given, tools=tools, store=False)
        given += [item.model_dump(mode="json") for item in second.output]
        third = ask(served, [*given, USER], tools=tools, store=False)
    assert [item.type for item in second.output] == ["mcp_call", "message"]
    assert [item.type for item in third.output] == ["function_call"]
    ran = RAN.format(name="odd_echo", arguments='{"text_": "hello"}', result="hello")
    assert prompts(scripted)[-1].count(ran) == 1


@pytest.mark.parametrize("how", ["cancelled", "left"])
def test_what_was_approved_and_cut_short_is_not_run_by_a_later_response(how: str) -> None:
    both = [*written("odd_hang")[:-1], *encoding().encode_special(AGAIN), *ECHO]
    scripted = Scripted(both, DONE)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        first = ask(served, tools=[ASKED])
        given = [answer(item.model_dump(), True) for item in first.output[1:]]
        body = {"tools": [ASKED], "previous_response_id": first.id, "stream": True}
        with served.client.stream("POST", PATH, json={"input": given, **body}) as response:
            lines = response.iter_lines()
            next(line for line in lines if "mcp_call_arguments.done" in line)
            responses = served.listener.config.app.responses  # type: ignore[union-attr]
            (id,) = responses.running
            if how == "cancelled":
                served.post(f"{PATH}/{id}/cancel", {})
                assert '"status":"cancelled"' in list(lines)[-2]
        served.wait_until(lambda: not responses.running)
        after = ask(served, "more", tools=[ASKED], previous_response_id=id)
    assert [item.type for item in after.output] == ["message"]
    assert prompts(scripted)[-1].count("<|start|>functions.odd_hang to=assistant") == 1
    echo = '{"text_": "hello"}'
    cut = RAN.format(name="odd_echo", arguments=echo, result="The call was interrupted.")
    assert cut in prompts(scripted)[-1]


def test_calls_that_need_no_word_are_run_beside_one_that_does() -> None:
    both = [*ECHO[:-1], *encoding().encode_special(AGAIN), *written("odd_was_cancelled")]
    scripted = Scripted(both, DONE)
    never = {"never": {"tool_names": ["echo"]}}
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        first = ask(served, tools=[{**ASKED, "require_approval": never}])
        kinds = ["mcp_list_tools", "mcp_call", "mcp_approval_request"]
        assert [item.type for item in first.output] == kinds
        given = [answer(first.output[-1].model_dump(), True)]
        ask(served, given, tools=[ASKED], previous_response_id=first.id)
    echo = RAN.format(name="odd_echo", arguments='{"text_": "hello"}', result="hello")
    other = RAN.format(name="odd_was_cancelled", arguments="{}", result="[]")
    assert prompts(scripted)[-1].endswith(echo + other + "<|start|>assistant")


@pytest.mark.parametrize(
    ("wish", "rule", "asks"),
    [
        (None, "allow", True),
        ("always", "allow", True),
        ("never", "allow", False),
        ("never", "ask", True),
        ({"always": {"tool_names": ["echo"]}}, "allow", True),
        ({"never": {"tool_names": ["other"]}}, "allow", True),
        ({"never": {"tool_names": ["echo"]}}, "allow", False),
        ({"never": {"tool_names": ["echo"]}}, "ask", True),
        ({"never": {}, "always": {"tool_names": ["echo"]}}, "allow", True),
        ({"never": {"read_only": True}}, "allow", True),
    ],
)
def test_the_stricter_of_two_rules_counts(wish: Any, rule: Any, asks: bool) -> None:
    scripted = Scripted(ECHO, DONE)
    with mcp_kit(odd(), rules={"odd": rule}) as kit, tooled(scripted, kit) as served:
        output = ask(served, tools=[{**ASKED, "require_approval": wish}]).output
    kinds = [item.type for item in output[1:]]
    assert kinds == (["mcp_approval_request"] if asks else ["mcp_call", "message"])


def test_a_server_that_is_denied_is_not_asked_about() -> None:
    scripted = Scripted(ECHO, DONE)
    with mcp_kit(odd(), rules={"odd": "deny"}) as kit, tooled(scripted, kit) as served:
        output = ask(served, tools=[ASKED]).output
    assert [item.type for item in output[1:]] == ["mcp_call", "message"]
    assert "Calls of odd are not permitted here." in prompts(scripted)[-1]


def test_a_client_that_can_ask_is_asked_while_the_response_is_made() -> None:
    scripted = Scripted(ECHO, ECHO, DONE)
    with mcp_kit(odd(), rules={"odd": "ask"}) as kit, tooled(scripted, kit) as served:
        found = approved(served, [True, False], tools=[ODD])
    requested = [e for e in found if e["type"] == "response.tool_approval.requested"]
    assert [event["tool"] for event in requested] == ["odd", "odd"]
    first, second = of(found[-1]["response"]["output"], "mcp_call")
    assert (first["output"], second["status"]) == ("hello", "failed")
    assert second["error"]["content"][0]["text"] == DECLINED


def test_half_a_call_is_no_question() -> None:
    scripted = Scripted(ECHO)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        found = events(served, tools=[ASKED], max_output_tokens=len(ECHO) - 3)
    check_documented(found)
    _, call = found[-1]["response"]["output"]
    assert (call["type"], call["status"], call["output"]) == ("mcp_call", "incomplete", None)


def test_a_tool_that_is_not_offered_any_more_is_not_run() -> None:
    """Whatever was agreed to: of a request that is made up, the client's filter counts too."""
    scripted = Scripted(DONE)
    request = {
        **{"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "odd"},
        **{"name": "echo", "arguments": "{}"},
    }
    tools = [{**ASKED, "allowed_tools": ["hang"]}]
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        output = ask(served, [USER, request, answer(request, True)], tools=tools).output
    (call,) = (item for item in output if item.type == "mcp_call")
    assert (call.status, call.output) == ("failed", None)
    assert "The server odd has no tool echo now." in prompts(scripted)[-1]


def test_an_approved_call_counts_as_one() -> None:
    scripted = Scripted(ECHO, ECHO, DONE)
    log: list[tuple[str, str]] = []
    makers = fake_kit(log=log).makers
    with mcp_kit(odd(), makers=makers) as kit, tooled(scripted, kit) as served:
        id, _, request = asked_first(served)
        body: Mapping[str, Any] = {"tools": [ASKED], "previous_response_id": id}
        output = ask(served, [answer(request, True)], max_tool_calls=1, **body).output
    assert [i.status for i in output if i.type == "mcp_call"] == ["completed", "failed"]
    assert codes(log) == []


WRONG: dict[str, tuple[list[Any], str]] = {
    "of no request": ([answer({"id": "mcpr_x"}, True)], "no approval request has the id 'mcpr_x'"),
    "without a word": (
        [{"type": "mcp_approval_response", "approval_request_id": "x", "approve": "yes"}],
        "approve is 'yes'",
    ),
    "a call without a name": (
        [{"type": "mcp_call", "server_label": "odd", "arguments": "{}"}],
        "input.0.name is None",
    ),
    "of a server that is not offered": (
        [
            {
                **{"type": "mcp_approval_request", "id": "r", "server_label": "other"},
                **{"name": "echo", "arguments": "{}"},
            },
            answer({"id": "r"}, True),
        ],
        "no server has the label 'other'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_answer_that_is_none_is_refused(case: str) -> None:
    items, said = WRONG[case]
    with mcp_kit(odd()) as kit, tooled(Scripted(), kit) as served:
        response = served.post(PATH, {"input": items, "tools": [ASKED]})
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize("streamed", [False, True])
def test_openais_agents_ask_and_go_on(streamed: bool) -> None:
    """Their SDK asks its own person, and sends everything back."""
    agents = pytest.importorskip("agents", reason="openai-agents is not installed")
    agents.set_tracing_disabled(True)
    asked: list[str] = []

    def approve(request: Any) -> Any:
        asked.append(request.data.arguments)
        return {"approve": len(asked) == 1, "reason": "Once is enough."}

    async def run(url: str) -> Any:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        async with client:
            model = agents.OpenAIResponsesModel(model="scripted", openai_client=client)
            tool = agents.HostedMCPTool(tool_config=ASKED, on_approval_request=approve)
            agent = agents.Agent(name="a", instructions="Echo.", model=model, tools=[tool])
            if not streamed:
                return (await agents.Runner.run(agent, "hi")).final_output
            result = agents.Runner.run_streamed(agent, "hi")
            async for _ in result.stream_events():
                pass
            return result.final_output

    scripted = Scripted(ECHO, ECHO, DONE)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        assert asyncio.run(run(served.url)) == "Done."
    assert asked == ['{"text_": "hello"}'] * 2
    results = ["hello", f"{DECLINED} Once is enough."]
    ran = [RAN.format(name="odd_echo", arguments=asked[0], result=text) for text in results]
    assert prompts(scripted)[-1].endswith("".join(ran) + "<|start|>assistant")
