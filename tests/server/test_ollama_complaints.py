"""What users of other servers reported, each under its number, through Ollama's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import gptoss_mlx
from gptoss_mlx.server.aliases import Aliases
from tests.server.test_ollama_chat import CALL, CHAT, HI, client_of, tool
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import Served, serving

SUM = [{"role": "user", "content": "What is 27 + 58?"}]


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    """The small model, which the grammar holds to what is asked."""
    with (
        gptoss_mlx.load("tiny", context=1024) as engine,
        serving(engine) as served,
    ):
        yield served


def asked(served: Served, **body: Any) -> dict[str, Any]:
    body = {"messages": SUM, "options": {"seed": 1, "num_predict": 300}, **body}
    response = served.post(CHAT, {**body, "stream": False})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def called(reply: str, *names: str) -> list[tuple[str, dict[str, Any]]]:
    with client_of(reply) as client:
        message = client.chat("scripted", HI, tools=[tool(name) for name in names]).message
    return [(c.function.name, dict(c.function.arguments)) for c in message.tool_calls or ()]


@pytest.mark.parametrize("name", ["get weather", "a.b", "ünï", "x" * 200])
def test_07_a_tool_may_have_any_name(name: str) -> None:
    assert called(CALL.format(Aliases([name]).shown(name), "{}"), name) == [(name, {})]


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f<|channel|>commentary<|message|>",
        " to=functions.f<|channel|>commentary json<|message|>",
        "<|channel|>analysis to=functions.f code<|message|>",
    ],
)
def test_08_no_token_leaks_into_the_name_of_a_tool(header: str) -> None:
    assert called(header + '{"a": 1}<|call|>', "f") == [("f", {"a": 1})]


@pytest.mark.parametrize("text", ["", "{", '{"a": ', "not JSON", "[1]", '"a"', '{"a": NaN'])
def test_09_what_is_no_object_is_no_call_and_is_not_lost(text: str) -> None:
    reply = CALL.format("f", text)
    with client_of(reply, reply) as client:
        whole = client.chat("scripted", HI, tools=[tool("f")])
        parts = list(client.chat("scripted", HI, tools=[tool("f")], stream=True))
    assert whole.message.tool_calls is None
    assert whole.message.content == text
    assert "".join(part.message.content or "" for part in parts) == text


def test_09_numbers_and_letters_that_json_lacks_do_not_break_the_answer() -> None:
    found = called(CALL.format("f", '{"a": 1e999, "b": NaN, "c": "\\ud800"}'), "f")
    assert found == [("f", {"a": None, "b": None, "c": "�"})]


@pytest.mark.parametrize("name", ["python", "browser", "bash", "container"])
def test_10_tools_named_as_the_models_own_are_the_callers(name: str) -> None:
    scripted = Scripted(CALL.format(Aliases([name]).shown(name), "{}"))
    with serving(scripted) as served:
        body = {"messages": HI, "tools": [tool(name)], "stream": False}
        message = served.post(CHAT, body).json()["message"]
    assert message["tool_calls"][0]["function"]["name"] == name
    encoding = scripted.engine.tokenizer.harmony
    assert encoding is not None
    prompt = encoding.decode(scripted.samplings[0][2])
    assert f"type {name} =" not in prompt
    assert f"## {name}\n" not in prompt


def test_11_a_call_of_an_unknown_tool_is_still_told() -> None:
    assert called(CALL.format("nobody_knows", '{"a": 1}'), "f") == [("nobody_knows", {"a": 1})]


def test_17_a_property_named_items_or_without_a_type_is_taken(tiny: Served) -> None:
    properties = {"items": {"description": "what to add"}, "n": {}}
    found = asked(tiny, tools=[tool("add", **properties)])
    assert found["message"]["content"] or found["message"].get("tool_calls")


def test_18_null_is_not_given() -> None:
    names = ("tools", "format", "options", "keep_alive", "think", "stream", "logprobs", "images")
    messages = [
        {"role": "system", "content": None, "images": None},
        {"role": "user", "content": "hi", "tool_calls": None, "thinking": None},
        {"role": "assistant", "content": None, "thinking": "Hm.", "tool_calls": None},
        {"role": "user", "content": "again"},
    ]
    nothing: dict[str, None] = dict.fromkeys(names)
    body = {"messages": messages, **nothing, "options": dict.fromkeys(("seed", "stop", "top_k"))}
    with serving(Scripted(f"{ANALYSIS}x{AGAIN}{FINAL}ok<|return|>")) as served:
        lines = [json.loads(line) for line in served.stream(CHAT, body)]
    assert "".join(part["message"]["content"] for part in lines) == "ok"


SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "sure": {"type": "boolean"}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("think", [None, True, False, "high"])
def test_22_a_schema_holds_while_the_model_thinks(tiny: Served, think: Any) -> None:
    found = asked(tiny, format=SCHEMA, think=think)
    value = json.loads(found["message"]["content"])
    assert set(value) == {"sum", "sure"}
    assert type(value["sum"]) is int
    assert type(value["sure"]) is bool
    if think is False:
        assert "thinking" not in found["message"]


def test_24_a_format_is_enforced_or_refused(tiny: Served) -> None:
    found = asked(tiny, format="json")
    assert found["done_reason"] == "length" or isinstance(
        json.loads(found["message"]["content"]), dict
    )
    for bad in ("xml", {"type": "object", "if": {}}, {"type": "nothing"}):
        assert tiny.post(CHAT, {"messages": SUM, "format": bad}).status_code == 400


def test_36_too_long_a_prompt_is_refused_with_both_counts() -> None:
    with serving(Scripted(context=200)) as served:
        for path, body in (
            (CHAT, {"messages": [{"role": "user", "content": "word " * 180}]}),
            ("/api/generate", {"prompt": "word " * 180}),
            ("/api/generate", {"prompt": "word " * 300, "raw": True}),
        ):
            response = served.post(path, {**body, "options": {"num_ctx": 8192}})
            assert response.status_code == 400
            error = response.json()["error"]
            assert "200" in error
            assert "tokens" in error
