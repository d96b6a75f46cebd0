"""Responses: what a script says comes out as items and events, streamed and not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptoss_mlx.server.openai import responses
from tests.support.responses import (
    CALL,
    ENDS,
    PATH,
    PREAMBLE,
    anonymous,
    ask,
    events,
    function,
    joined,
    types_of,
)
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import Served, serving

TOOLS = [function("f"), function("g")]
HELLO = f"{FINAL}Hello there! How can I assist you today?<|return|>"
REASONED = f"{ANALYSIS}Hm, é \U0001fadc.{AGAIN}{FINAL}Hello é \U0001fadc!<|return|>"
REPLIES = {
    "an answer": HELLO,
    "reasoning": REASONED,
    "a call": f"{ANALYSIS}I look.{AGAIN}" + CALL.format("f", '{"a": "é"}'),
    "a preamble and a call": f"{PREAMBLE}Let me see.{AGAIN}" + CALL.format("f", '{"a": 1}'),
    "a preamble and an answer": f"{PREAMBLE}First.{AGAIN}{FINAL}Then.<|return|>",
    "two calls": CALL.format("f", "{}").replace("<|call|>", AGAIN) + CALL.format("g", "{}"),
    "nothing": f"{FINAL}<|return|>",
    "malformed": f"<|channel|>analysis<|channel|>x{AGAIN}<|message|>odd<|return|>",
}
EXPECTED: dict[str, list[tuple[str, str]]] = {
    "an answer": [("final_answer", "Hello there! How can I assist you today?")],
    "reasoning": [("reasoning", "Hm, é \U0001fadc."), ("final_answer", "Hello é \U0001fadc!")],
    "a call": [("reasoning", "I look."), ("f", '{"a": "é"}')],
    "a preamble and a call": [("commentary", "Let me see."), ("f", '{"a": 1}')],
    "a preamble and an answer": [("commentary", "First."), ("final_answer", "Then.")],
    "two calls": [("f", "{}"), ("g", "{}")],
    "nothing": [],
}

REASONING_EVENTS = [
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_text.delta",
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
GOLDEN_EVENTS = {
    "response.created": "type sequence_number response",
    "response.in_progress": "type sequence_number response",
    "response.output_item.added": "type sequence_number output_index item",
    "response.content_part.added": ("type sequence_number item_id output_index content_index part"),
    "response.output_text.delta": (
        "type sequence_number item_id output_index content_index delta logprobs"
    ),
    "response.output_text.done": (
        "type sequence_number item_id output_index content_index text logprobs"
    ),
    "response.content_part.done": "type sequence_number item_id output_index content_index part",
    "response.output_item.done": "type sequence_number output_index item",
    "response.completed": "type sequence_number response",
}
"""A stream of OpenAI's as its server writes it: events in order, each with its fields."""

GOLDEN_RESPONSE: dict[str, Any] = {
    "object": "response",
    "status": "completed",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": "You are a helpful assistant.",
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": "low", "summary": "detailed"},
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
    "metadata": {},
}


def said(output: list[dict[str, Any]]) -> list[tuple[str, str]]:
    found = []
    for item in output:
        if item["type"] == "function_call":
            found.append((item["name"], item["arguments"]))
        else:
            text = "".join(part["text"] for part in item["content"])
            found.append((item.get("phase", "reasoning"), text))
    return found


@pytest.mark.parametrize("case", EXPECTED)
def test_streamed_and_not_say_the_same(case: str) -> None:
    body: dict[str, Any] = {"tools": TOOLS, "seed": 1}
    with serving(Scripted(REPLIES[case], REPLIES[case])) as served:
        found = events(served, **body)
        whole = ask(served, **body).model_dump(mode="json", exclude_unset=True)
    last = found[-1]["response"]
    for response in (last, whole):  # the second one reuses the prefix of the first
        response["usage"]["input_tokens_details"] = None
    assert anonymous(last) == anonymous(whole)
    assert said(last["output"]) == EXPECTED[case]
    texts: dict[str, list[str]] = {"output_text": [], "reasoning_text": [], "call": []}
    for kind, text in EXPECTED[case]:
        key = {"reasoning": "reasoning_text", "f": "call", "g": "call"}.get(kind, "output_text")
        texts[key].append(text)
    assert joined(found, "output_text") == "".join(texts["output_text"])
    assert joined(found, "reasoning_text") == "".join(texts["reasoning_text"])
    assert joined(found, "function_call_arguments") == "".join(texts["call"])


def test_the_order_and_the_fields_are_those_of_openais_own_streams() -> None:
    with serving(Scripted(f"{ANALYSIS}Hm.{AGAIN}{HELLO}")) as served:
        found = events(
            served,
            instructions="You are a helpful assistant.",
            reasoning={"effort": "low"},
        )
    at = types_of(found).index("response.output_item.added")
    assert types_of(found)[at : at + len(REASONING_EVENTS)] == REASONING_EVENTS
    message = found[:at] + found[at + len(REASONING_EVENTS) :]
    assert list(dict.fromkeys(types_of(message))) == list(GOLDEN_EVENTS)
    assert types_of(message).count("response.output_text.delta") == 10
    for event in message:
        assert set(event) == set(GOLDEN_EVENTS[event["type"]].split())
    expected = {**GOLDEN_RESPONSE, "reasoning": {"effort": "low", "summary": None}}
    begun = {**expected, "status": "in_progress", "service_tier": "auto", "usage": None}
    assert found[0]["response"].items() >= {**begun, "output": []}.items()
    assert found[-1]["response"].items() >= expected.items()
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert found[-1]["response"]["output"] == done
    assert [event["output_index"] for event in message[2:-1]] == [1] * (len(message) - 3)


def test_the_usage_counts_what_is_reused_and_what_is_reasoning() -> None:
    with serving(Scripted(REASONED, REASONED)) as served:
        first, second = ask(served), ask(served)
    for response, cached in ((first, 0), (second, 1)):
        usage = response.usage
        assert usage is not None
        assert usage.output_tokens == len(Scripted(REASONED).replies[0])
        assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert (usage.input_tokens_details.cached_tokens > 0) == bool(cached)


def test_a_summary_that_is_asked_for_is_the_reasoning() -> None:
    with serving(Scripted(REASONED)) as served:
        found = events(served, reasoning={"effort": "high", "summary": "auto"})
    assert joined(found, "reasoning_summary_text") == joined(found, "reasoning_text")
    item = found[-1]["response"]["output"][0]
    assert item["summary"] == [{"type": "summary_text", "text": "Hm, é \U0001fadc."}]
    summary = [name for name in types_of(found) if "summary" in name and "delta" not in name]
    assert [name.removeprefix("response.reasoning_summary_") for name in summary] == [
        "part.added",
        "text.done",
        "part.done",
    ]


def test_logprobs_are_of_the_text_and_join_to_it() -> None:
    text = "Hi é \U0001fadc!"
    with serving(Scripted(f"{ANALYSIS}x{AGAIN}{FINAL}{text}<|return|>")) as served:
        found = events(served, include=["message.output_text.logprobs"], top_logprobs=2)
    whole = found[-1]["response"]["output"][1]["content"][0]["logprobs"]
    parts = [
        one for e in found if e["type"] == "response.output_text.delta" for one in e["logprobs"]
    ]
    assert parts == whole
    assert b"".join(bytes(token["bytes"]) for token in whole).decode() == text


def test_a_limit_makes_a_response_incomplete() -> None:
    reply = f"{FINAL}one two three four<|return|>"
    with serving(Scripted(reply, reply)) as served:
        response = ask(served, max_output_tokens=5)
        found = events(served, max_output_tokens=5)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text
    assert "one two three four".startswith(response.output_text)
    assert found[-1]["type"] == "response.incomplete"
    assert found[-1]["response"]["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("case", REPLIES)
def test_37_a_stream_never_ends_before_its_end(case: str) -> None:
    """Whatever the model writes, and wherever it fails. `events` looks at the end."""
    scripted = Scripted(*[REPLIES[case]] * 4)
    with serving(scripted) as served:
        events(served, tools=TOOLS)
        for tokens in (1, 3):
            assert events(served, tools=TOOLS, max_output_tokens=tokens)[-1]["type"] in ENDS
        scripted.fail("read", 2, RuntimeError("secret /path"))
        found = events(served, tools=TOOLS)
    assert types_of(found)[-2:] == ["error", "response.failed"]
    assert found[-1]["response"]["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(found)


def test_35_clients_that_wait_for_events_are_told_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a long prompt is read. Comments do not count for them."""
    monkeypatch.setattr(responses, "QUIET_SECONDS", 0)
    with serving(Scripted(HELLO)) as served:
        found = events(served, "word " * 60)
    names = types_of(found)
    at = names.index("response.output_item.added")
    assert names[:at].count("response.in_progress") > 4
    assert names[at:].count("response.in_progress") == 0


def test_a_failure_before_the_end_of_a_whole_response_is_an_error() -> None:
    scripted = Scripted(HELLO, HELLO)
    with serving(scripted) as served:
        scripted.fail("read", 2, RuntimeError("secret /path"))
        response = served.post(PATH, {"input": "hi"})
        assert response.status_code == 500
        assert "secret" not in response.text
        assert ask(served).output_text.startswith("Hello")


@pytest.mark.parametrize("case", ["malformed", "two calls", "reasoning"])
def test_12_no_mark_of_a_channel_leaks_into_a_text(case: str) -> None:
    with serving(Scripted(REPLIES[case])) as served:
        found = events(served, tools=TOOLS)
    assert "<|" not in json.dumps([event.get("delta") for event in found])
    assert "<|" not in json.dumps(found[-1]["response"]["output"])


def test_40_the_answer_is_not_in_the_reasoning() -> None:
    with serving(Scripted(REASONED)) as served:
        response = ask(served)
    assert response.output_text == "Hello é \U0001fadc!"
    assert "Hello" not in response.output[0].to_json()


def test_a_caller_who_leaves_ends_the_response() -> None:
    with serving(Scripted([200005, 17196, 200008, *[1000] * 4000], HELLO, window=4096)) as served:
        with served.client.stream("POST", PATH, json={"input": "hi", "stream": True}) as response:
            next(line for line in response.iter_lines() if "output_text.delta" in line)
        served.wait_until(lambda: served.registry.entries[0].sequences == 0)
        assert ask(served).output_text.startswith("Hello")


def test_a_warm_up_with_nothing_to_say_is_answered() -> None:
    """As Codex sends it to see whether a model answers."""
    with serving(Scripted(HELLO)) as served:
        response = served.post(PATH, {"input": "", "max_output_tokens": 1})
    assert response.json()["status"] == "incomplete"


def only_one_call(served: Served) -> list[tuple[str, str]]:
    found = events(served, tools=TOOLS, parallel_tool_calls=False)
    return said(found[-1]["response"]["output"])


def test_20_more_than_one_call_a_turn_is_returned_unless_one_is_wanted() -> None:
    with serving(Scripted(*[REPLIES["two calls"]] * 2)) as served:
        both = ask(served, tools=TOOLS).output
        assert only_one_call(served) == [("f", "{}")]
    assert [item.name for item in both if item.type == "function_call"] == ["f", "g"]
    assert len({item.call_id for item in both if item.type == "function_call"}) == 2
