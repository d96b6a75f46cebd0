"""Answers of Anthropic's messages, read strictly by its own types: what a script says comes out,
streamed and not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gptoss_mlx.server.anthropic.arguments import Arguments
from gptoss_mlx.server.anthropic.thinking import signed, unsealed
from tests.support.messages_api import CALL, HELLO, HI, PATH, ask, summed, told, tool
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import serving

PREAMBLE = "<|channel|>commentary<|message|>"
THINKING = {"type": "adaptive"}


REPLIES = {
    "an answer": HELLO,
    "reasoning": f"{ANALYSIS}Hm, é.{AGAIN}{FINAL}Hello!<|return|>",
    "a call": f"{ANALYSIS}I look.{AGAIN}" + CALL.format("f", '{"a": "é, {", "b": [1, {}]}'),
    "a preamble and a call": f"{PREAMBLE}Let me see.{AGAIN}" + CALL.format("f", '{"a": 1}'),
    "two calls": CALL.format("f", "{}").replace("<|call|>", AGAIN) + CALL.format("g", "{}"),
    "nothing": "<|return|>",
}
SEAL = {"signature": "gptoss."}
EXPECTED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "an answer": ([{"type": "text", "text": "Hello é \U0001fadc."}], "end_turn"),
    "reasoning": (
        [{"type": "thinking", "thinking": "Hm, é.", **SEAL}, {"type": "text", "text": "Hello!"}],
        "end_turn",
    ),
    "a call": (
        [
            {"type": "thinking", "thinking": "I look.", **SEAL},
            {"type": "tool_use", "name": "f", "input": {"a": "é, {", "b": [1, {}]}},
        ],
        "tool_use",
    ),
    "a preamble and a call": (
        [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "name": "f", "input": {"a": 1}},
        ],
        "tool_use",
    ),
    "two calls": (
        [
            {"type": "tool_use", "name": "f", "input": {}},
            {"type": "tool_use", "name": "g", "input": {}},
        ],
        "tool_use",
    ),
    "nothing": ([{"type": "text", "text": ""}], "end_turn"),
}


def without_ids(content: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    ids = [block["id"] for block in content if "id" in block]
    assert len(set(ids)) == len(ids)
    return [{name: v for name, v in block.items() if name != "id"} for block in content]


@pytest.mark.parametrize("case", REPLIES)
def test_streamed_and_not_say_the_same(case: str) -> None:
    body = {"tools": [tool("f"), tool("g")]}
    with serving(Scripted(REPLIES[case], REPLIES[case])) as served:
        streamed, whole = summed(told(served, **body)), ask(served, **body)
    content, stop_reason = EXPECTED[case]
    for message in (streamed, whole):
        assert without_ids(message["content"]) == content
        assert (message["stop_reason"], message["stop_sequence"]) == (stop_reason, None)
        assert message["id"].startswith("msg_")
    # The second one found the prompt in the cache.
    differ = {"id": "", "content": "", "usage": ""}
    assert {**streamed, **differ} == {**whole, **differ}
    totals = [sum(n for n in m["usage"].values() if isinstance(n, int)) for m in (streamed, whole)]
    assert totals[0] == totals[1]


def test_the_start_has_the_prompts_counts_and_the_end_all() -> None:
    scripted = Scripted(REPLIES["reasoning"])
    tokens = len(scripted.replies[0])
    with serving(scripted) as served:
        events = told(served, thinking=THINKING)
        count = served.post(f"{PATH}/count_tokens", {"messages": HI}).json()
    start, end = events[0]["message"]["usage"], events[-2]["usage"]
    assert start["output_tokens"] == 0
    assert end["output_tokens"] == tokens
    assert 0 < end["output_tokens_details"]["thinking_tokens"] < tokens
    assert {**start, "output_tokens": tokens} == {
        name: value for name, value in end.items() if name != "output_tokens_details"
    }
    assert count == {"input_tokens": start["input_tokens"] + start["cache_read_input_tokens"]}


def test_39_no_stop_reason_comes_before_the_end() -> None:
    with serving(Scripted(REPLIES["a call"])) as served:
        events = told(served, tools=[tool("f")])
    given = [event["type"] for event in events if '"stop_reason": "' in json.dumps(event)]
    assert given == ["message_delta"]
    assert events[0]["message"]["stop_reason"] is None


def test_40_the_answer_is_text_and_never_in_the_thinking_alone() -> None:
    """Where thinking was not asked for, the first block is text, as many clients take it to be."""
    with serving(Scripted(*[REPLIES["reasoning"]] * 4)) as served:
        asked = ask(served, thinking=THINKING)["content"]
        omitted = ask(served, thinking={**THINKING, "display": "omitted"})["content"]
        for body in ({}, {"thinking": {"type": "disabled"}}):
            assert ask(served, **body)["content"] == [{"type": "text", "text": "Hello!"}]
    assert [block["type"] for block in asked] == ["thinking", "text"]
    assert omitted[0]["thinking"] == ""
    assert unsealed(omitted[0]["signature"]) == "Hm, é."


def test_12_no_marks_and_no_arguments_leak_into_text_or_thinking() -> None:
    reply = f"{ANALYSIS}plan{AGAIN}{PREAMBLE}Now.{AGAIN}" + CALL.format("f", '{"k": "v"}')
    with serving(Scripted(reply)) as served:
        events = told(served, tools=[tool("f")])
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    said = "".join(delta.get("text", "") + delta.get("thinking", "") for delta in deltas)
    assert said == "planNow."
    assert "<|" not in json.dumps(events)


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        ("go to Paris", {"arguments": "go to Paris"}),
        ("[1, 2]", {"arguments": "[1, 2]"}),
        ('"{}"', {"arguments": '"{}"'}),
        ("Error {x}", {"arguments": "Error {x}"}),
        ('{"a": 1, "b": oops}', {"a": 1}),
        ('{"a": 1, "b": "cut o', {"a": 1}),
        ('{"a": 1} and more', {"a": 1}),
        ('{"a": "\\ud800"}', {}),
        ('{"a": 1, "b": NaN}', {"a": 1}),
        ('{"a": 1e999}', {}),
        ('{"a": "\\"}{,"}', {"a": '"}{,'}),
    ],
)
def test_9_arguments_that_are_no_json_go_out_as_an_object(written: str, given: object) -> None:
    reply = CALL.format("f", written)
    with serving(Scripted(reply, reply)) as served:
        body = {"tools": [tool("f")]}
        for message in (summed(told(served, **body)), ask(served, **body)):
            assert message["stop_reason"] == "tool_use"
            assert message["content"][0]["input"] == given


@pytest.mark.parametrize("text", ['{"a": "x,y", "b" : {"c": [1,2]} }', "{ }", "no", '{"a":1,,'])
def test_arguments_are_the_same_however_they_are_cut(text: str) -> None:
    arguments = Arguments()
    whole = arguments.push(text) + arguments.finish()
    assert isinstance(json.loads(whole), dict)
    for size in range(1, len(text)):
        arguments = Arguments()
        parts = [arguments.push(text[i : i + size]) for i in range(0, len(text), size)]
        assert "".join(parts) + arguments.finish() == whole


@pytest.mark.parametrize(
    "text", ["{" + '"a":{' * 5000, '{"a":' + "[" * 5000 + "]" * 5000 + "}", "[" * 5000, "}" * 5000]
)
def test_arguments_of_any_depth_are_an_object(text: str) -> None:
    arguments = Arguments()
    assert isinstance(json.loads(arguments.push(text) + arguments.finish()), dict)


def test_members_of_arguments_are_given_as_soon_as_they_are_whole() -> None:
    arguments = Arguments()
    assert [arguments.push(text) for text in ('{"a": "b', '", ', '"c": [1, 2', "]", "}")] == [
        "",
        '{"a": "b"',
        "",
        "",
        ', "c": [1, 2]',
    ]
    assert arguments.finish() == "}"


def test_a_signature_carries_what_it_was_given_and_others_carry_nothing() -> None:
    for text in ("", "x", "é \U0001fadc <|end|>" * 100):
        assert unsealed(signed(text)) == text
    for other in ("", "EqQBCgIYAhIM", "gptoss.%%%", "gptoss.AAAA", None, 7, "gptoss.é"):
        assert unsealed(other) == ""


def test_the_stop_sequence_that_ended_it_is_told_and_cut_off() -> None:
    reply = f"{FINAL}one two three<|return|>"
    with serving(Scripted(reply, reply, reply)) as served:
        found = ask(served, stop_sequences=["three", "two", ""])
        assert found["content"] == [{"type": "text", "text": "one "}]
        assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "two")
        assert ask(served, stop_sequences=["four"])["stop_reason"] == "end_turn"
        assert ask(served, max_tokens=4)["stop_reason"] == "max_tokens"


def test_max_tokens_beyond_the_room_are_clamped_to_it() -> None:
    with serving(Scripted(f"{FINAL}{'word ' * 400}<|return|>", context=200)) as served:
        found = ask(served, max_tokens=100000)
    assert found["stop_reason"] == "model_context_window_exceeded"
    usage = found["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == 200


@pytest.mark.parametrize("name", ["python", "get weather", "mcp__a.b__c", "x" * 200])
def test_a_tool_of_any_name_is_called_and_answered_by_that_name(name: str) -> None:
    """A round trip: the call, its result with the thinking sent back, and the answer."""
    from gptoss_mlx.server.aliases import Aliases

    shown = Aliases([name]).shown(name)
    scripted = Scripted(
        f"{ANALYSIS}I look.{AGAIN}" + CALL.format(shown, '{"a": 1}'), f"{FINAL}17<|return|>"
    )
    body = {"tools": [tool(name)], "tool_choice": {"type": "any"}}
    with serving(scripted) as served:
        found = ask(served, **body)
        call = found["content"][-1]
        assert (call["name"], call["input"]) == (name, {"a": 1})
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "seventeen"}
        messages = [
            *HI,
            {"role": "assistant", "content": found["content"]},
            {"role": "user", "content": [result, {"type": "text", "text": "go on"}]},
        ]
        answer = ask(served, messages, **{**body, "tool_choice": None})
    assert answer["content"] == [{"type": "text", "text": "17"}]
    read = scripted.engine.tokenizer.decoder()
    prompt = "".join(read.push(id) for id in scripted.samplings[1][2])
    assert "I look." in prompt
    assert f"functions.{shown}" in prompt
    assert prompt.index("seventeen") < prompt.index("go on")


def test_parallel_calls_can_be_turned_off() -> None:
    body = {
        "tools": [tool("f"), tool("g")],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }
    with serving(Scripted(REPLIES["two calls"])) as served:
        found = ask(served, **body)
    assert [block["name"] for block in found["content"]] == ["f"]


def test_an_error_of_the_model_is_an_event_and_the_last() -> None:
    scripted = Scripted(*[HELLO] * 3)
    with serving(scripted) as served:
        scripted.fail("read", 2, RuntimeError("secret /path"))
        *_, last = told(served)
        assert (last["type"], last["error"]["type"]) == ("error", "api_error")
        assert last["request_id"].startswith("req_")
        assert "secret" not in json.dumps(last)
        scripted.fail("read", 2, RuntimeError("secret /path"))
        response = served.post(PATH, {"messages": HI, "max_tokens": 10})
        assert (response.status_code, response.json()["error"]["type"]) == (500, "api_error")
        assert summed(told(served))["stop_reason"] == "end_turn"
