"""OpenAI's cases for servers of gpt-oss: a tool of each, called with the arguments expected, comes
out of every API as the client would have it, and its result is answered.

The cases are from openai/gpt-oss, compatibility-test (Apache 2.0). A script stands for the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from gptoss_mlx.harmony import render_reply
from tests.support.scripted_model import Scripted, encoding
from tests.support.served import serving

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "compatibility-cases.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
NAMES = sorted({case["tool_name"] for case in CASES})


def tool(name: str) -> dict[str, Any]:
    """A tool that takes what the cases give it."""
    given = [json.loads(case["expected_arguments"]) for case in CASES if case["tool_name"] == name]
    kinds = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array"}
    properties = {
        key: {"type": kinds.get(type(value), "object")}
        for arguments in given
        for key, value in arguments.items()
    }
    parameters = {"type": "object", "properties": properties}
    return {"name": name, "description": f"Tool {name}.", "parameters": parameters}


TOOLS = [tool(name) for name in NAMES]


def replies(case: dict[str, Any]) -> list[list[int]]:
    call = {"function": {"name": case["tool_name"], "arguments": case["expected_arguments"]}}
    first = {"role": "assistant", "reasoning": "A tool will do.", "tool_calls": [call]}
    return [
        render_reply(encoding(), first),
        render_reply(encoding(), {"role": "assistant", "content": "Done."}),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_responses(stream: bool) -> None:
    scripted = Scripted(*[reply for case in CASES for reply in replies(case)])
    tools: Any = [{"type": "function", **function} for function in TOOLS]
    with serving(scripted) as served, OpenAI(base_url=f"{served.url}/v1", api_key="-") as client:
        for case in CASES:
            asked: Any = {"model": "scripted", "input": case["input"], "tools": tools}
            if stream:
                with client.responses.stream(**asked) as events:
                    first = events.get_final_response()
            else:
                first = client.responses.create(**asked)
            reasoning, call = first.output
            assert (reasoning.type, call.type) == ("reasoning", "function_call")
            assert call.name == case["tool_name"]
            assert json.loads(call.arguments) == json.loads(case["expected_arguments"])
            output: Any = {"type": "function_call_output", "call_id": call.call_id}
            answer = client.responses.create(
                model="scripted",
                input=[{**output, "output": "[1, 2]"}],
                previous_response_id=first.id,
                tools=tools,
            )
            assert answer.output_text == "Done."
    assert not scripted.replies


@pytest.mark.parametrize("stream", [False, True])
def test_chat_completions(stream: bool) -> None:
    scripted = Scripted(*[reply for case in CASES for reply in replies(case)])
    tools: Any = [{"type": "function", "function": function} for function in TOOLS]
    with serving(scripted) as served, OpenAI(base_url=f"{served.url}/v1", api_key="-") as client:
        for case in CASES:
            messages: list[Any] = [{"role": "user", "content": case["input"]}]
            if stream:
                with client.chat.completions.stream(
                    model="scripted", messages=messages, tools=tools
                ) as events:
                    choice = events.get_final_completion().choices[0]
            else:
                whole = client.chat.completions.create(
                    model="scripted", messages=messages, tools=tools
                )
                choice = whole.choices[0]  # type: ignore[assignment]
            assert choice.finish_reason == "tool_calls"
            (call,) = choice.message.tool_calls or ()
            assert call.function.name == case["tool_name"]
            assert json.loads(call.function.arguments) == json.loads(case["expected_arguments"])
            messages += [
                choice.message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": "[1, 2]"},
            ]
            answer = client.chat.completions.create(
                model="scripted", messages=messages, tools=tools
            )
            assert answer.choices[0].message.content == "Done."
    assert not scripted.replies
