"""Rendering against OpenAI's golden files: each file beside the conversation it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.harmony import Conversation, Encoding
from gptoss_mlx.harmony.encoding import START
from gptoss_mlx.harmony.messages import Turn
from gptoss_mlx.harmony.render import render_turns

GOLDEN = Path(__file__).parent / "golden"
CAPITAL = "What is the capital of the largest country in the world?"
ROBOT = "Answer the user's questions like a robot."


def function(name: str, description: str = "", parameters: Any = None) -> dict[str, Any]:
    body = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": body}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").rstrip()


LOCATION = {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}
FORMAT = {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}
PLACES = {
    "type": "array",
    "items": {"type": "string"},
    "description": 'List of city and state, e.g. ["San Francisco, CA", "New York, NY"]',
}
KITCHENSINK = {
    "description": "params object",
    "type": "object",
    "properties": {
        "string": {
            "type": "string",
            "title": "STRING",
            "description": "A string",
            "examples": ["hello", "world"],
        },
        "string_nullable": {
            "type": "string",
            "nullable": True,
            "description": "A nullable string",
            "default": "the default",
        },
        "string_enum": {"type": "string", "enum": ["a", "b", "c"]},
        "oneof_string_or_number": {
            "oneOf": [
                {"type": "string", "default": "default_string_in_oneof"},
                {"type": "number", "description": "numbers can happen too"},
            ],
            "description": "a oneof",
            "default": 20,
        },
    },
}
WEATHER_TOOLS = (
    function("get_location", "Gets the location of the user."),
    function(
        "get_current_weather",
        "Gets the current weather in the provided location.",
        {
            "type": "object",
            "properties": {"location": LOCATION, "format": FORMAT},
            "required": ["location"],
        },
    ),
    function(
        "get_multiple_weathers",
        "Gets the current weather in the provided list of locations.",
        {
            "type": "object",
            "properties": {"locations": PLACES, "format": FORMAT},
            "required": ["locations"],
        },
    ),
    function("kitchensink", "A function with various complex schemas.", KITCHENSINK),
)
LOOKUP = function(
    "lookup_weather",
    "Use this tool to lookup the weather in a given location. Call it with the parameter "
    "'location', can be any textual description of a location.",
    {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
)
BROWSER, PYTHON = {"type": "browser"}, {"type": "python"}
FEWER = ("analysis", "final")
CANDY = "What is the best place to eat candy in the world?"
WHOLE = {
    "test_no_tools": Conversation((), date="2025-06-28"),
    "test_browser_tool_only": Conversation((), tools=(BROWSER,), date="2025-06-28"),
    "test_browser_and_python_tool": Conversation((), tools=(BROWSER, PYTHON), date="2025-06-28"),
    "test_browser_and_function_tool": Conversation((), tools=(BROWSER, LOOKUP), date="2025-06-28"),
    "test_simple_convo": Conversation((user("What is 2 + 2?"),), date=""),
    "test_reasoning_system_message": Conversation(
        (user("What is 2 + 2?"),), date="", channels=FEWER
    ),
    "test_reasoning_system_message_no_instruction": Conversation(
        (user(CANDY),), date="", channels=FEWER, reasoning="high"
    ),
    "test_reasoning_system_message_with_dates": Conversation(
        (user("What is 42 * pi?"),),
        date="2021-01-01",
        knowledge_cutoff="2021-01",
        channels=FEWER,
    ),
    "test_render_functions_with_parameters": Conversation(
        (user("What is the weather like in SF?"),),
        system="Always respond in riddles",
        tools=WEATHER_TOOLS,
        date="2025-06-28",
        reasoning="high",
    ),
}
for effort in ("low", "medium", "high"):
    plain = Conversation((user(CAPITAL),), date="", reasoning=effort)
    told = Conversation((user(CAPITAL),), date="", reasoning=effort, system=ROBOT)
    WHOLE[f"test_simple_convo_{effort}_effort_no_instruction"] = plain
    WHOLE[f"test_simple_convo_{effort}_effort"] = told

SUM = user("What is 2 + 2?"), user("What about 9 / 2?")


def answer(text: str, reasoning: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "reasoning": reasoning}


AFTER_SYSTEM = {
    "test_dropping_cot_by_default": Conversation((SUM[0], answer("2 + 2 equals 4.", "x"), SUM[1])),
    "test_preserve_cot": Conversation(
        (
            SUM[0],
            answer(
                "2 + 2 equals 4.", 'User asks a simple question: "What is 2 + 2?" The answer: 4.'
            ),
            SUM[1],
        ),
        keep_reasoning=True,
    ),
    "test_keep_analysis_between_finals": Conversation(
        (SUM[0], answer("4", "thinking 2+2"), user("What is 3 + 5?"), answer("8", "thinking 3+5")),
        open=False,
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_golden_conversation(encoding: Encoding, name: str) -> None:
    ids = WHOLE[name].render(encoding)
    assert encoding.decode(ids) == golden(name)
    assert ids == encoding.encode_special(golden(name))


@pytest.mark.parametrize("name", AFTER_SYSTEM)
def test_golden_conversation_without_its_system_message(encoding: Encoding, name: str) -> None:
    ids = AFTER_SYSTEM[name].render(encoding)
    assert ids[ids.index(START, 1) :] == encoding.encode_special(golden(name))


def test_golden_tool_loop_under_way(encoding: Encoding) -> None:
    thought = "User asks: “What is the weather in SF?” We need to use lookup_weather tool."
    call = {"name": "lookup_weather", "arguments": '{"location": "San Francisco"}'}
    conversation = Conversation(
        (
            user("What is the weather in SF?"),
            {"role": "assistant", "reasoning": thought, "tool_calls": [{"function": call}]},
        ),
    )
    ids = conversation.render(encoding)[:-2]
    result = '{"temperature": 20, "description": "sunny"}'
    # the file's tool message has neither recipient nor channel, which ours always have
    ids += render_turns(encoding, [Turn("tool", result, name="functions.lookup_weather")])
    ids += encoding.encode_special("<|start|>assistant")
    expected = encoding.encode_special(golden("test_does_not_drop_if_ongoing_analysis"))
    assert ids[ids.index(START, 1) :] == expected


def test_golden_tool_message(encoding: Encoding) -> None:
    turn = Turn(
        "tool",
        '{"result": "https://openai.com/"}',
        name="browser.search",
        channel="commentary",
        recipient="assistant",
    )
    ids = render_turns(encoding, [turn])[:-1]
    assert encoding.decode(ids) == golden("test_tool_response_parsing")


def test_every_golden_file_is_used() -> None:
    parsed = {"test_simple_reasoning_response", "test_simple_tool_call", "test_streamable_parser"}
    loose = {"test_does_not_drop_if_ongoing_analysis", "test_tool_response_parsing"}
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {*WHOLE, *AFTER_SYSTEM, *loose, *parsed}
