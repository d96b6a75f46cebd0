"""Anthropic's messages on the tiny model: what is enforced, what is counted, what is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import gptoss_mlx
from gptoss_mlx.server.policy import Policy
from tests.support.messages_api import HI, PATH, ask, summed, told
from tests.support.scripted_model import FINAL, Scripted
from tests.support.served import Served, serving

WEATHER = {
    "name": "get_weather",
    "description": "Get the weather for a city.",
    "input_schema": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    },
}


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    with gptoss_mlx.load("tiny", context=4096) as engine, serving(engine) as served:
        yield served


def question(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def asked(served: Served, messages: Any, **body: Any) -> dict[str, Any]:
    return ask(served, messages, **{"temperature": 0, "max_tokens": 200, **body})


def kinds(message: dict[str, Any]) -> list[str]:
    return [block["type"] for block in message["content"]]


def test_19_a_tool_choice_is_kept(tiny: Served) -> None:
    places = {"type": "object", "properties": {"location": {"enum": ["Paris", "Rome"]}}}
    forced = {**WEATHER, "input_schema": {**places, "required": ["location"]}}
    body: dict[str, Any] = {"tools": [forced], "thinking": {"type": "disabled"}}
    other = question("What is 27 + 58?")
    weather = question("What is the weather in Paris?")
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        found = asked(tiny, other, **body, tool_choice=choice)
        assert found["stop_reason"] == "tool_use"
        assert found["content"][-1]["input"]["location"] in ("Paris", "Rome")
    assert "tool_use" not in kinds(asked(tiny, weather, **body, tool_choice={"type": "none"}))


def test_a_schema_is_kept_after_thinking(tiny: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "schema": schema}
    for body in ({"output_config": {"format": format}}, {"output_format": format}):
        found = asked(tiny, question("What is 27 + 58?"), thinking={"type": "adaptive"}, **body)
        assert isinstance(json.loads(found["content"][-1]["text"])["sum"], int)


@pytest.mark.parametrize("budget", [0, 3, 10])
def test_38_a_budget_ends_the_thinking_and_an_answer_follows(tiny: Served, budget: int) -> None:
    thinking = {"type": "enabled", "budget_tokens": budget}
    found = asked(tiny, question("What is 27 + 58?"), thinking=thinking)
    assert found["stop_reason"] == "end_turn"
    assert found["content"][-1]["text"]
    marks = 2  # around the reasoning, which are counted as well
    assert found["usage"]["output_tokens_details"]["thinking_tokens"] <= budget + marks


def test_40_who_did_not_ask_for_thinking_has_tokens_left_for_the_answer(tiny: Served) -> None:
    found = asked(tiny, question("What is 27 + 58?"), max_tokens=24)
    assert kinds(found) == ["text"]
    assert found["content"][0]["text"]


COUNTED: dict[str, dict[str, Any]] = {
    "a question": {},
    "a system prompt": {"system": [{"type": "text", "text": "Be brief."}]},
    "tools": {"tools": [WEATHER], "tool_choice": {"type": "any"}},
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 30000}},
    "no thinking": {"thinking": {"type": "disabled"}},
    "a schema": {
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    },
    "a conversation": {
        "messages": [
            *HI,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "gptoss."},
                    {
                        "type": "tool_use",
                        "id": "t",
                        "name": "get_weather",
                        "input": {"location": 1},
                    },
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sun"}],
            },
        ],
        "tools": [WEATHER],
    },
}


@pytest.mark.parametrize("case", COUNTED)
def test_a_count_is_what_the_same_request_reads(tiny: Served, case: str) -> None:
    body = {"messages": HI, **COUNTED[case]}
    response = tiny.post(f"{PATH}/count_tokens", body)
    assert response.status_code == 200, response.text
    usage = ask(tiny, **{"max_tokens": 2, **body})["usage"]
    read = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert response.json() == {"input_tokens": read}


def test_28_dropped_thinking_costs_the_last_answer_and_no_more(tiny: Served) -> None:
    """What turn n reads: its own tokens, the answer before it without its thinking, and at most 64
    tokens up to the place from which it goes on."""
    system = "Be brief. " * 60  # longer than the window of the tiny model
    messages: list[dict[str, Any]] = []
    read, before = [], 0
    for number in range(5):
        messages += question(f"What is 2{number} + 41?")
        found = asked(tiny, messages, system=system, thinking={"type": "adaptive"})
        assert kinds(found) == ["thinking", "text"]
        messages.append({"role": "assistant", "content": found["content"]})
        usage = found["usage"]
        total = usage["input_tokens"] + usage["cache_read_input_tokens"]
        read.append((usage["input_tokens"], total - before))
        before = total
    for tokens, grown in read[1:]:
        assert tokens <= grown + 64


def test_28_a_tool_loop_reads_its_results_alone(tiny: Served) -> None:
    """The thinking is sent back, and the arguments are rendered as they were written."""
    messages = question("What is the weather in Paris?")
    body = {"tools": [WEATHER], "tool_choice": {"type": "any"}, "thinking": {"type": "adaptive"}}
    found = asked(tiny, messages, **body)
    call = found["content"][-1]
    assert call["type"] == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "It is sunny."}
    messages += [
        {"role": "assistant", "content": found["content"]},
        {"role": "user", "content": [result]},
    ]
    second = asked(tiny, messages, tools=[WEATHER], thinking={"type": "adaptive"})
    usage = found["usage"]
    held = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["output_tokens"]
    assert second["usage"]["cache_read_input_tokens"] >= held - 1


@pytest.mark.parametrize("written", ['{"a":1,"b":[2]}', '{ "a" : 1 }'])
def test_28_arguments_come_back_as_they_were_written(written: str) -> None:
    call = " to=functions.f<|channel|>commentary <|constrain|>json<|message|>"
    scripted = Scripted(f"{call}{written}<|call|>", f"{FINAL}x<|return|>", f"{FINAL}x<|return|>")
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    with serving(scripted) as served:
        found = summed(told(served, tools=tools))
        block = found["content"][0]
        for changed in (False, True):
            given = {**block, "input": {"c": 3}} if changed else block
            result = {"type": "tool_result", "tool_use_id": block["id"], "content": "7"}
            messages = [
                *HI,
                {"role": "assistant", "content": [given]},
                {"role": "user", "content": [result]},
            ]
            ask(served, messages, tools=tools)
    first, second, third = (ids for _, _, ids in scripted.samplings)
    assert second[: len(first)] == first
    wanted = scripted.engine.tokenizer.encode(written)
    assert any(second[i : i + len(wanted)] == wanted for i in range(len(second)))
    assert not any(third[i : i + len(wanted)] == wanted for i in range(len(third)))


def test_35_a_long_prefill_is_bridged_by_pings() -> None:
    """By the clock, from the headers on, and never once the answer has come."""
    scripted = Scripted(f"{FINAL}Hello.<|return|>")
    gate, prefill = threading.Event(), scripted.model.prefill

    def slow(*arguments: Any) -> Any:
        assert gate.wait(60)
        return prefill(*arguments)

    scripted.model.prefill = slow  # type: ignore[method-assign]
    body = {"messages": HI, "max_tokens": 100, "stream": True}
    with (
        serving(scripted, policy=Policy(beat_seconds=0.05)) as served,
        served.client.stream("POST", PATH, json=body) as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        names = [line for line in _until(response.iter_lines(), 4, gate) if "event: " in line]
    events = [name.removeprefix("event: ") for name in names]
    assert events.count("ping") >= 4
    assert events[-1] == "message_stop"
    assert next(name for name in events if name != "ping") == "message_start"


def _until(lines: Iterator[str], pings: int, gate: threading.Event) -> Iterator[str]:
    """All lines; the gate opens after so many pings."""
    for line in lines:
        pings -= line == "event: ping"
        if pings <= 0:
            gate.set()
        yield line


def test_34_a_caller_that_leaves_stops_the_work() -> None:
    scripted = Scripted(f"{FINAL}{'word ' * 3000}<|return|>")
    with serving(scripted) as served:
        body = {"messages": HI, "max_tokens": 4000, "stream": True}
        with served.client.stream("POST", PATH, json=body) as response:
            next(response.iter_lines())
        served.wait_until(lambda: served.registry.entries[0].sequences == 0)
        assert scripted.count("read") < 3000
