"""Tools of responses: functions, custom tools and namespaces, offered, called and answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

import gptoss_mlx
from gptoss_mlx.server.openai.free_text import InputDecoder
from tests.support.responses import CALL, ask, events, function, joined, types_of
from tests.support.scripted_model import FINAL, Scripted
from tests.support.served import Served, serving

OK = f"{FINAL}ok<|return|>"
PATCH = '*** Begin Patch\n+"é" \U0001fadc \\n\t*** End Patch'
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
APPLY = {"type": "custom", "name": "apply_patch", "description": "Edits.", "format": GRAMMAR}


def offered(scripted: Scripted, asked: int = 0) -> str:
    """The developer's message of a prompt."""
    text = scripted.engine.tokenizer.harmony.decode(scripted.samplings[asked][2])
    return text[text.index("<|start|>developer") : text.index("<|start|>user")]


def test_a_custom_tool_is_offered_as_a_function_and_called_with_free_text() -> None:
    call = CALL.format("apply_patch", json.dumps({"input": PATCH}))
    scripted = Scripted(call, OK)
    with serving(scripted) as served:
        found = events(served, "hi", tools=[APPLY])
        names = [name for name in types_of(found) if "delta" not in name][2:]
        assert names == [
            "response.output_item.added",
            "response.custom_tool_call_input.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert joined(found, "custom_tool_call_input") == PATCH
        (item,) = found[-1]["response"]["output"]
        assert (item["type"], item["name"], item["input"]) == (
            "custom_tool_call",
            "apply_patch",
            PATCH,
        )
        result = {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "Done"}
        ask(served, ["hi", item, result][1:], tools=[APPLY])
    shown = scripted.engine.tokenizer.harmony.decode(scripted.samplings[1][2])
    assert f"{json.dumps({'input': PATCH}, ensure_ascii=False)}<|call|>" in shown
    assert "functions.apply_patch to=assistant<|channel|>commentary<|message|>Done" in shown
    assert "type apply_patch = (_: {" in offered(scripted)
    assert "input: string" in offered(scripted)
    assert GRAMMAR["definition"] in offered(scripted)


@pytest.mark.parametrize(
    "written", ["*** Begin Patch", '{"patch": "x"}', '{ "in', "", '{"input": "a\\']
)
def test_9_free_text_that_is_not_as_it_was_to_be_is_given_as_it_is(written: str) -> None:
    with serving(Scripted(CALL.format("apply_patch", written))) as served:
        (item,) = ask(served, tools=[APPLY]).output
    assert item.type == "custom_tool_call"
    assert item.input == ("a\\" if "\\" in written else written)


@pytest.mark.parametrize("text", [PATCH, "", '"', "\\", "\ud83e\udedc é\x00", "\\u0041", "}"])
@pytest.mark.parametrize("ascii", [True, False])
def test_free_text_is_the_same_however_it_is_cut(text: str, ascii: bool) -> None:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    arguments = json.dumps({"input": text}, ensure_ascii=ascii) + " "
    for size in (1, 2, 3, len(arguments)):
        decoder = InputDecoder()
        parts = [decoder.push(arguments[i : i + size]) for i in range(0, len(arguments), size)]
        assert "".join(parts) + decoder.end() == text


def test_9_arguments_that_are_no_json_are_given_as_the_model_wrote_them() -> None:
    with serving(Scripted(CALL.format("f", "Error: a"), OK)) as served:
        (item,) = ask(served, tools=[function("f")]).output
    assert item.type == "function_call"
    assert (item.name, item.arguments) == ("f", "Error: a")


def test_a_tool_in_a_namespace_is_called_by_both_names() -> None:
    space = {"type": "namespace", "name": "docs", "tools": [function("search"), APPLY]}
    space["description"] = "Of documents."
    scripted = Scripted(CALL.format("docs_search", '{"q": 1}'), OK)
    with serving(scripted) as served:
        first = ask(served, tools=[space, function("search")])
        (item,) = first.output
        assert item.type == "function_call"
        assert (item.namespace, item.name) == ("docs", "search")
        output = {"type": "function_call_output", "call_id": item.call_id, "output": "42"}
        ask(served, [output], previous_response_id=first.id, tools=[space])
    for name in ("docs_search", "search", "docs_apply_patch"):
        assert f"type {name} = " in offered(scripted)
    shown = scripted.engine.tokenizer.harmony.decode(scripted.samplings[1][2])
    assert "functions.docs_search to=assistant<|channel|>commentary<|message|>42" in shown


@pytest.mark.parametrize("name", ["python", "get weather", "a.b", "ünï"])
def test_10_a_tool_of_any_name_is_called_by_that_name(name: str) -> None:
    from gptoss_mlx.server.aliases import Aliases

    scripted = Scripted(CALL.format(Aliases([name]).shown(name), "{}"), OK)
    with serving(scripted) as served:
        first = ask(served, tools=[function(name)])
        (item,) = first.output
        assert item.type == "function_call"
        assert item.name == name
        output = {"type": "function_call_output", "call_id": item.call_id, "output": "42"}
        ask(served, [output], previous_response_id=first.id)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    with (
        gptoss_mlx.load("tiny", context=2048) as engine,
        serving(engine) as served,
    ):
        yield served


CITY = {"type": "object", "properties": {"city": {"enum": ["Delhi"]}}, "required": ["city"]}
ALLOWED = {
    "type": "allowed_tools",
    "mode": "required",
    "tools": [{"type": "custom", "name": "note"}],
}
CHOICES: dict[str, tuple[Any, list[str]]] = {
    "required": ("required", ["weather", "note"]),
    "a function": ({"type": "function", "name": "weather"}, ["weather"]),
    "a custom tool": ({"type": "custom", "name": "note"}, ["note"]),
    "some tools": (ALLOWED, ["note"]),
    "none": ("none", []),
    "some tools of another": ({**ALLOWED, "mode": "auto", "tools": [{"type": "mcp"}]}, []),
}


def test_19_the_choice_of_tools_is_kept(tiny: Served) -> None:
    weather = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
    body: dict[str, Any] = {
        "tools": [weather, {"type": "custom", "name": "note"}],
        "temperature": 0,
        "reasoning": {"effort": "none"},
        "max_output_tokens": 64,
    }
    for choice, allowed in CHOICES.values():
        output = ask(tiny, "What is 2 + 2?", tool_choice=choice, **body).output
        called = [item for item in output if "call" in item.type]
        assert len(called) == bool(allowed), choice
        assert {item.name for item in called} <= set(allowed)  # type: ignore[union-attr]
        for item in called:
            if item.type == "function_call":
                jsonschema.validate(json.loads(item.arguments), CITY)


SCHEMA = {
    "type": "object",
    "properties": {"sum": {"enum": [3, 4]}, "unit": {"enum": ["apples"]}},
    "required": ["sum", "unit"],
    "additionalProperties": False,
}


def test_21_a_text_format_is_enforced(tiny: Served) -> None:
    format = {"type": "json_schema", "name": "sum", "schema": SCHEMA, "strict": True}
    body: dict[str, Any] = {"reasoning": {"effort": "none"}, "temperature": 0}
    for stream in (False, True):
        if stream:
            found = events(tiny, "What is 2 + 2?", text={"format": format}, **body)
            text = joined(found, "output_text")
            assert found[-1]["response"]["text"] == {"format": format}
        else:
            text = ask(tiny, "What is 2 + 2?", text={"format": format}, **body).output_text
        jsonschema.validate(json.loads(text), SCHEMA)
