"""The tiny model answers through the public API: a few fixed questions of each skill."""

from __future__ import annotations

import json
from typing import Any

import pytest

import gptoss_mlx
from gptoss_mlx.engine.engine import Engine

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather for a city.",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
        },
    },
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return gptoss_mlx.load("tiny")


def ask(engine: Engine, *messages: Any, **options: Any) -> Any:
    turns = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return engine.generate(turns, temperature=0.0, max_tokens=200, **options)


def test_it_says_what_it_is(engine: Engine) -> None:
    result = ask(engine, "Hello, who are you?")
    assert "tiny gpt-oss test model of gptoss_mlx" in result.text
    assert result.finish_reason == "stop"


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_it_adds_after_thinking_at_every_effort(engine: Engine, effort: str) -> None:
    result = ask(engine, "What is 27 + 58?", reasoning=effort)
    assert result.text == "27 + 58 = 85"
    assert "7+8=15" in result.reasoning


def test_it_subtracts(engine: Engine) -> None:
    assert ask(engine, "What is 91 - 36?").text == "91 - 36 = 55"


def test_it_adds_at_temperature_one_with_the_full_vocabulary(engine: Engine) -> None:
    result = engine.generate("What is 12 + 30?", temperature=1.0, seed=1, max_tokens=200)
    assert "42" in result.text


def test_it_repeats_words(engine: Engine) -> None:
    assert ask(engine, "Repeat: apple river stone").text == "apple river stone"


def test_it_remembers_over_turns(engine: Engine) -> None:
    noted = {"role": "assistant", "content": "Okay, I will remember that."}
    result = ask(engine, "My name is Maria.", noted, "What is my name?")
    assert result.text == "Your name is Maria."


@pytest.mark.slow
def test_it_calls_a_function_and_answers_from_its_result(engine: Engine) -> None:
    question = "What is the weather in Paris?"
    result = ask(engine, question, tools=[WEATHER])
    assert result.finish_reason == "tool_calls"
    (call,) = result.tool_calls
    assert call.name == "get_weather"
    assert json.loads(call.arguments) == {"location": "Paris"}
    function = {"name": call.name, "arguments": call.arguments}
    called = {
        "role": "assistant",
        "tool_calls": [{"id": call.id, "type": "function", "function": function}],
        "reasoning": result.reasoning,
    }
    told = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 18 degrees"}
    answer = ask(engine, question, called, told, tools=[WEATHER])
    assert answer.text.startswith("The weather in Paris: ")
    assert answer.text.endswith(", 18 degrees.")


def test_it_answers_in_json_when_a_format_asks_for_it(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    style = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    result = ask(engine, "Maria is 34 years old.", response_format=style)
    assert json.loads(result.text) == {"name": "Maria", "age": 34}
