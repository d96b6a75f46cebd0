"""Tools that the server runs: calls between turns, as items and events of the Responses API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from gptoss_mlx.tools.tool import Outcome
from tests.support.responses import CALL, PATH, PREAMBLE, anonymous, ask, events, function, types_of
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served_tools import (
    BROWSE,
    CALLED,
    CODE,
    DONE,
    FOUND,
    OUTPUTS,
    PYTHON,
    SEARCH,
    STATELESS,
    THOUGHT,
    browser_kit,
    check_documented,
    codes,
    fake_kit,
    prompts,
    tooled,
)

CODE_EVENTS = [
    "response.output_item.added",
    "response.code_interpreter_call.in_progress",
    "response.code_interpreter_call_code.delta",
    "response.code_interpreter_call_code.done",
    "response.code_interpreter_call.interpreting",
    "response.code_interpreter_call.completed",
    "response.output_item.done",
]
SEARCH_EVENTS = [
    "response.output_item.added",
    "response.web_search_call.in_progress",
    "response.web_search_call.searching",
    "response.web_search_call.completed",
    "response.output_item.done",
]


def of_item(found: list[dict[str, Any]], index: int) -> list[str]:
    """The types of an item's events, each kind once."""
    return list(dict.fromkeys(e["type"] for e in found if e.get("output_index") == index))


def test_a_call_is_run_and_the_model_reads_what_it_gave() -> None:
    scripted = Scripted(THOUGHT + CODE.format("a"), CODE.format("b"), DONE)
    log: list[tuple[str, str]] = []
    with tooled(scripted, fake_kit(log=log)) as served:
        response = ask(served, tools=[PYTHON], **OUTPUTS)
    assert [text for _, text in log] == ["a", "b", "closed"]
    assert [item.type for item in response.output] == [
        *("reasoning", "code_interpreter_call", "code_interpreter_call", "message")
    ]
    assert response.output_text == "Done."
    assert [
        (item.code, item.status, [o.logs for o in item.outputs or () if o.type == "logs"])
        for item in response.output
        if item.type == "code_interpreter_call"
    ] == [("a", "completed", ["A"]), ("b", "completed", ["B"])]
    thought = "<|start|>assistant<|channel|>analysis<|message|>Compute.<|end|>"
    end = thought + CALLED.format("a", "A") + CALLED.format("b", "B") + "<|start|>assistant"
    assert prompts(scripted)[-1].endswith(end)
    assert "# Tools\n\n## python" in prompts(scripted)[0]


def test_the_usage_is_the_sum_of_all_turns() -> None:
    replies = [THOUGHT + CODE.format("a"), DONE]
    scripted = Scripted(*replies)
    with tooled(scripted, fake_kit()) as served:
        usage = ask(served, tools=[PYTHON]).usage
    assert usage is not None
    assert usage.output_tokens == sum(map(len, Scripted(*replies).replies))
    assert usage.input_tokens == sum(len(ids) for _, _, ids in scripted.samplings)
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens


def test_the_events_of_code_are_in_the_documented_order() -> None:
    scripted = Scripted(THOUGHT + CODE.format("1 + 1"), DONE)
    with tooled(scripted, fake_kit()) as served:
        found = events(served, tools=[PYTHON], **OUTPUTS)
    check_documented(found)
    assert of_item(found, 1) == CODE_EVENTS
    indexes = [event["output_index"] for event in found if "output_index" in event]
    assert indexes == sorted(indexes)
    begun = next(e["item"] for e in found if e.get("output_index") == 1)
    assert (begun["status"], begun["code"], begun["outputs"]) == ("in_progress", "", None)
    code = "".join(e["delta"] for e in found if e["type"] == CODE_EVENTS[2])
    done = [e["item"] for e in found if e["type"] == "response.output_item.done"]
    assert (code, done[1]["code"], done[1]["status"]) == ("1 + 1", "1 + 1", "completed")
    assert found[-1]["response"]["output"] == done


def test_the_events_of_a_search_are_in_the_documented_order(tmp_path: Path) -> None:
    replies = [
        BROWSE.format("search", '{"query": "ferry"}'),
        BROWSE.format("open", '{"id": 0}'),
        BROWSE.format("find", '{"pattern": "seven"}'),
        BROWSE.format("open", '{"id": 99}'),
        f"{FINAL}At seven【1†L4】, I think.<|return|>",
    ]
    with browser_kit(tmp_path) as kit, tooled(Scripted(*replies), kit) as served:
        found = events(served, tools=[SEARCH], include=["web_search_call.action.sources"])
    check_documented(found)
    for index in range(4):
        assert of_item(found, index) == SEARCH_EVENTS
    *calls, message = found[-1]["response"]["output"]
    assert [call["action"] for call in calls] == [
        {
            "type": "search",
            "query": "ferry",
            "queries": ["ferry"],
            "sources": [{"type": "url", "url": "harbour.md"}],
        },
        {"type": "open_page", "url": "harbour.md"},
        {"type": "find_in_page", "url": "harbour.md", "pattern": "seven"},
        {"type": "open_page", "url": None},
    ]
    assert [call["status"] for call in calls] == ["completed"] * 3 + ["failed"]
    (part,) = message["content"]
    (note,) = part["annotations"]
    assert part["text"] == "At seven (The harbour), I think."
    assert (note["type"], note["filename"], note["index"]) == ("file_citation", "harbour.md", 8)
    names = of_item(found, 4)
    at = names.index("response.output_text.annotation.added")
    assert names[at - 1 : at + 2 : 2] == [
        "response.output_text.delta",
        "response.output_text.done",
    ]
    deltas = [e["delta"] for e in found if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == part["text"]


def test_the_model_reads_its_own_marks_in_the_next_turn(tmp_path: Path) -> None:
    """Whatever its clients read in their place, by whichever way the answer comes back."""
    mark = "At seven 【1†L4】."
    scripted = Scripted(*FOUND, f"{FINAL}{mark}<|return|>", DONE, DONE)
    with browser_kit(tmp_path) as kit, tooled(scripted, kit) as served:
        first = ask(served, tools=[SEARCH])
        second = ask(served, "and?", previous_response_id=first.id)
        ask(served, [item.model_dump(mode="json") for item in first.output])
        listed = served.client.get(f"{PATH}/{second.id}/input_items").text
    assert "【" not in first.output_text
    for prompt in prompts(scripted)[3:]:
        assert f"<|channel|>final<|message|>{mark}<|end|>" in prompt
    assert "as_written" not in listed + first.model_dump_json()


def test_marks_stay_in_an_answer_of_a_given_form(tmp_path: Path) -> None:
    answer = '{"a": "【1†L4】"}'
    scripted = Scripted(*FOUND, f"{FINAL}{answer}<|return|>")
    with browser_kit(tmp_path) as kit, tooled(scripted, kit) as served:
        text = {"format": {"type": "json_object"}}
        assert ask(served, tools=[SEARCH], text=text).output_text == answer


@pytest.mark.parametrize("store", [True, False])
def test_streamed_and_not_say_the_same(store: bool) -> None:
    script = [f"{PREAMBLE}I compute.{AGAIN}" + CODE.format("a"), CODE.format("b"), DONE]
    body: dict[str, Any] = {"tools": [PYTHON], "seed": 1, "store": store, **OUTPUTS}
    with tooled(Scripted(*script, *script), fake_kit()) as served:
        found = events(served, **body)
        whole = ask(served, **body).model_dump(mode="json", exclude_unset=True)
    last = found[-1]["response"]
    for response in (last, whole):
        response["usage"]["input_tokens_details"] = None
        for item in response["output"]:
            item.pop("container_id", None)
    assert anonymous(last) == anonymous(whole)


def test_openais_client_streams_and_creates() -> None:
    script = [CODE.format("a"), DONE]
    body: dict[str, Any] = {"model": "scripted", "input": "hi", "tools": [PYTHON], **OUTPUTS}
    with (
        tooled(Scripted(*script, *script), fake_kit()) as served,
        OpenAI(base_url=f"{served.url}/v1", api_key="any") as client,
    ):
        with client.responses.stream(**body) as stream:
            names = [event.type for event in stream]
            streamed = stream.get_final_response()
        whole = client.responses.create(**body)
    assert streamed.output_text == whole.output_text == "Done."
    assert [name for name in names if name in CODE_EVENTS[1:6]] == CODE_EVENTS[1:6]
    (call,) = (item for item in streamed.output if item.type == "code_interpreter_call")
    assert [output.logs for output in call.outputs or () if output.type == "logs"] == ["A"]


@pytest.mark.parametrize("way", ["kept", "sent back", "sent back sealed"])
def test_a_function_among_calls_goes_on_with_all_of_them(way: str) -> None:
    """The turn that calls a function is the last one; the next request goes on from there."""
    script = [THOUGHT + CODE.format("a"), CALL.format("f", "{}"), DONE]
    scripted = Scripted(*script)
    body: dict[str, Any] = {"tools": [PYTHON, function("f")]}
    with tooled(scripted, fake_kit()) as served:
        more = {"kept": {}, "sent back": {"store": False, **OUTPUTS}, "sent back sealed": STATELESS}
        first = ask(served, **body, **more[way])
        (call,) = (item for item in first.output if item.type == "function_call")
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "42"}
        if way == "kept":
            ask(served, [output], previous_response_id=first.id, **body)
        else:
            given = [item.model_dump(mode="json", exclude_unset=True) for item in first.output]
            user = {"role": "user", "content": "hi"}
            ask(served, [user, *given, output], **body)
    assert first.output_text == ""
    assert prompts(scripted)[-1].endswith(
        "<|start|>user<|message|>hi<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>Compute.<|end|>"
        + CALLED.format("a", "A")
        + "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>"
        "{}<|call|><|start|>functions.f to=assistant<|channel|>commentary<|message|>42<|end|>"
        "<|start|>assistant"
    )


def test_calls_before_an_answer_are_not_read_again() -> None:
    scripted = Scripted(CODE.format("secret"), DONE, DONE)
    with tooled(scripted, fake_kit()) as served:
        first = ask(served, tools=[PYTHON])
        ask(served, "more", tools=[PYTHON], previous_response_id=first.id)
    assert "secret" not in prompts(scripted)[-1]
    assert "Done.<|end|>" in prompts(scripted)[-1]


def test_several_calls_of_a_turn_are_run_in_order() -> None:
    both = CODE.format("a").replace("<|call|>", AGAIN) + CODE.format("b")
    log: list[tuple[str, str]] = []
    with tooled(Scripted(both, DONE, both, DONE), fake_kit(log=log)) as served:
        output = ask(served, tools=[PYTHON]).output
        assert [i.code for i in output if i.type == "code_interpreter_call"] == ["a", "b"]
        assert codes(log) == ["a", "b"]
        found = events(served, tools=[PYTHON], parallel_tool_calls=False)
    assert codes(log)[2:] == ["a"]
    assert [i["type"] for i in found[-1]["response"]["output"]] == [
        *("code_interpreter_call", "message")
    ]


def test_a_call_that_failed_is_told_to_the_model_and_the_client() -> None:
    scripted = Scripted(CODE.format("a"), DONE)
    with tooled(scripted, fake_kit(lambda _: Outcome("NameError: a", failed=True))) as served:
        found = events(served, tools=[PYTHON], **OUTPUTS)
    (item, _) = found[-1]["response"]["output"]
    assert item["status"] == "failed"
    assert item["outputs"] == [{"type": "logs", "logs": "NameError: a"}]
    assert CALLED.format("a", "NameError: a") in prompts(scripted)[-1]


def test_a_tool_that_is_broken_fails_the_response() -> None:
    def broken(_: str) -> str:
        raise RuntimeError("secret /path")

    with tooled(Scripted(CODE.format("a"), CODE.format("a"), DONE), fake_kit(broken)) as served:
        found = events(served, tools=[PYTHON])
        refused = served.post(PATH, {"input": "hi", "tools": [PYTHON]})
        assert ask(served).output_text == "Done."
    assert types_of(found)[-2:] == ["error", "response.failed"]
    assert refused.status_code == 500
    assert "secret" not in json.dumps(found) + refused.text


def test_reasoning_and_analysis_of_calls_are_no_answer() -> None:
    script = [f"{ANALYSIS}Hm.{AGAIN}" + CODE.format("a"), f"{ANALYSIS}So.{AGAIN}{DONE}"]
    with tooled(Scripted(*script), fake_kit()) as served:
        response = ask(served, tools=[PYTHON])
    assert response.output_text == "Done."
    kinds = ["reasoning", "code_interpreter_call", "reasoning", "message"]
    assert [item.type for item in response.output] == kinds
