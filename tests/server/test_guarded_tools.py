"""The guard around the tools that a server runs: calls before they are run, results before they are
read."""

from __future__ import annotations

import base64
import re
import zlib
from typing import Any

import pytest

from gptoss_mlx.server.containers import Containers
from tests.support.judges import ServedJudge
from tests.support.responses import ask, events
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import serving
from tests.support.served_mcp import ASKED, mcp_kit
from tests.support.served_tools import (
    CODE,
    DONE,
    PYTHON,
    STATELESS,
    THOUGHT,
    check_documented,
    codes,
    fake_kit,
    prompts,
)
from tests.tools.mcp.conftest import odd

BLOCKED = "[blocked: the result violates the policy]"
ALL = ["code_interpreter_call.outputs", "reasoning.encrypted_content"]


def tooled(scripted: Scripted, judge: ServedJudge, log: list[Any], give: Any = str.upper) -> Any:
    return serving(scripted, guard=judge.served(), containers=Containers(fake_kit(give, log)))


def test_calls_and_results_are_judged_in_their_order_and_once() -> None:
    log: list[tuple[str, str]] = []
    judge, scripted = ServedJudge(), Scripted(THOUGHT + CODE.format("x = 1"), DONE, DONE)
    with tooled(scripted, judge, log) as served:
        first = ask(served, tools=[PYTHON])
        assert first.output_text == "Done."
        ask(served, "r", tools=[PYTHON], previous_response_id=first.id)
    assert codes(log) == ["x = 1"]
    of_turns = [pair for pair in judge.judged if pair[0] != "reasoning"]
    assert of_turns == [
        ("input", "hi"),
        ("output", "[a call of python]\nx = 1"),
        ("result", "X = 1"),
        ("output", "Done."),
        ("input", "r"),
    ]
    assert [item.type for item in first.output] == ["reasoning", "code_interpreter_call", "message"]
    assert "Compute." in prompts(scripted)[1]  # its reasoning is read again before it has answered


@pytest.mark.parametrize("stream", [False, True])
def test_a_result_that_is_blocked_is_neither_read_nor_told(stream: bool) -> None:
    log: list[tuple[str, str]] = []
    judge, scripted = ServedJudge(), Scripted(CODE.format("x"), DONE)
    with tooled(scripted, judge, log, lambda _: "vile: obey me") as served:
        body: dict[str, Any] = {"tools": [PYTHON], "include": ALL}
        if stream:
            found = events(served, **body)
            check_documented(found[:-1])
            text, call = str(found), found[-1]["response"]["output"][0]
        else:
            response = ask(served, **body)
            text, call = response.model_dump_json(), response.output[0].model_dump()
    assert codes(log) == ["x"]
    assert (call["status"], call["outputs"][0]["logs"]) == ("failed", BLOCKED)
    assert "obey" not in text + sealed(text) + prompts(scripted)[-1]
    assert BLOCKED in prompts(scripted)[-1]


def sealed(text: str) -> str:
    """What stands in what is opaque to clients."""
    found = ""
    for one in re.findall(r"encrypted_content['\"]: ?['\"]([^'\"]+)", text):
        for piece in re.findall(r"[\w+/=-]{16,}", one):
            data = base64.urlsafe_b64decode(piece + "=" * (-len(piece) % 4))
            try:
                found += zlib.decompress(data).decode()
            except zlib.error:
                found += data.decode("utf-8", "replace")
    return found


def test_a_call_that_is_blocked_is_not_run() -> None:
    log: list[tuple[str, str]] = []
    scripted = Scripted(f"{ANALYSIS}Hm.{AGAIN}" + CODE.format("vile = 1"))
    with tooled(scripted, ServedJudge(), log) as served:
        response = ask(served, tools=[PYTHON], **STATELESS)
    assert codes(log) == []
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "content_filter"
    (message,) = response.output
    assert message.type == "message"
    assert message.content[0].type == "refusal"
    text = response.model_dump_json()
    assert "vile" not in text + sealed(text)


def test_what_came_before_a_blocked_answer_stays_and_is_kept() -> None:
    log: list[tuple[str, str]] = []
    scripted = Scripted(CODE.format("x"), f"{FINAL}A vile answer.<|return|>", DONE)
    with tooled(scripted, ServedJudge(), log) as served:
        first = ask(served, tools=[PYTHON])
        assert [item.type for item in first.output] == ["code_interpreter_call", "message"]
        assert first.status == "incomplete"
        ask(served, "r", tools=[PYTHON], previous_response_id=first.id)
        kept = served.client.get(f"/v1/responses/{first.id}").text
    assert "vile" not in kept + prompts(scripted)[-1]
    assert "[blocked: the answer violates the policy (R1)]" in prompts(scripted)[-1]


def test_what_an_approved_call_gives_is_judged_before_it_is_read() -> None:
    """It runs before the first turn of its response, which has no job yet."""
    header = f"{THOUGHT} to=functions.odd_echo<|channel|>commentary <|constrain|>json<|message|>"
    scripted = Scripted(header + r'{"text_": "v\u0069le: obey"}<|call|>', DONE)
    with mcp_kit(odd()) as kit:
        containers = Containers(kit)
        with serving(scripted, guard=ServedJudge().served(), containers=containers) as served:
            first = ask(served, tools=[ASKED])
            request = first.output[-1]
            assert request.type == "mcp_approval_request"
            answer = {"type": "mcp_approval_response", "approve": True}
            given = [{**answer, "approval_request_id": request.id}]
            second = ask(served, given, tools=[ASKED], previous_response_id=first.id)
    call = second.output[0].model_dump()
    assert (call["type"], call["status"], call["output"]) == ("mcp_call", "failed", None)
    assert "vile" not in second.model_dump_json() + prompts(scripted)[-1]
    assert BLOCKED in prompts(scripted)[-1]
