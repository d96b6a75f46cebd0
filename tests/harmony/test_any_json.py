"""Any JSON as messages, tools and formats: it renders, or one short line says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptoss_mlx.errors import MessageError
from gptoss_mlx.harmony import Encoding, render, render_reply
from gptoss_mlx.harmony.encoding import CALL as CALL_END
from gptoss_mlx.harmony.encoding import RETURN
from gptoss_mlx.harmony.messages import read_messages

NUMBERS = st.sampled_from([0, -1, 2.5, 2**64, 10**400, -(10**300), float("inf"), float("nan")])
TEXTS = st.text(max_size=6) | st.sampled_from(["\ud800", "<|end|>", "x" * 300, "é" * 5000])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def like(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with some of these fields, and sometimes anything in them, or something else."""
    loose = {name: st.one_of(field, field, field, JSON) for name, field in fields.items()}
    return st.one_of(st.fixed_dictionaries({}, optional=loose), JSON)


ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
KINDS = st.sampled_from(["function", "browser", "python", "text", "json_object", "json_schema"])
NAMES = st.sampled_from(["f", "get_weather", "no name", ""])
IDS = st.sampled_from(["1", "2", 3])
PARTS = st.lists(like(type=st.just("text"), text=TEXTS), max_size=2)
CALL = like(id=IDS, function=like(name=NAMES, arguments=st.just("{}")))
MESSAGE = like(
    role=ROLES,
    content=TEXTS | PARTS,
    tool_calls=st.lists(CALL, max_size=2),
    tool_call_id=IDS,
    name=NAMES,
    reasoning=TEXTS,
)
SCHEMA = like(
    type=st.sampled_from(["object", "array", "string", "integer", ["string", "null"]]),
    properties=st.dictionaries(NAMES, JSON, max_size=3),
    required=st.lists(NAMES, max_size=2),
    anyOf=st.lists(JSON, max_size=3),
    enum=st.lists(JSON, max_size=3),
    minimum=NUMBERS,
    default=JSON,
)
TOOL = like(type=KINDS, function=like(name=NAMES, description=TEXTS, parameters=SCHEMA))
FORMAT = like(type=KINDS, json_schema=like(name=NAMES, schema=SCHEMA, description=TEXTS))


def tried(make: Callable[[], list[int]]) -> list[int] | None:
    """What it makes, or None after a MessageError in one short line."""
    try:
        return make()
    except MessageError as error:
        line = str(error)
    assert len(line) <= 300
    assert "\n" not in line
    return None


@pytest.mark.slow
@settings(max_examples=800, deadline=None, derandomize=True)
@given(
    messages=st.lists(MESSAGE, max_size=3) | JSON,
    tools=st.lists(TOOL, max_size=2) | JSON,
    system=TEXTS | JSON,
    response_format=st.none() | FORMAT,
    reasoning=st.just("low") | JSON,
)
@example([{"role": "tool", "name": ["f"]}], [], None, None, "low")
@example([{"role": "assistant", "tool_calls": [{"id": [1]}]}], [], None, None, "low")
@example([], [{"type": ["function"], "function": {"name": ["f"]}}], None, None, "low")
def test_it_renders_or_says_why_not(
    encoding: Encoding,
    messages: Any,
    tools: Any,
    system: Any,
    response_format: Any,
    reasoning: Any,
) -> None:
    options = {"tools": tools, "system": system, "response_format": response_format}
    ids = tried(lambda: render(encoding, messages, reasoning=reasoning, **options))
    assert ids is None or encoding.decode(ids).endswith("<|start|>assistant")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(MESSAGE)
def test_a_reply_too(encoding: Encoding, message: Any) -> None:
    ids = tried(lambda: render_reply(encoding, message))
    assert ids is None or ids[-1] in (RETURN, CALL_END)


@pytest.mark.parametrize("number", [10**5000, -(10**5000)], ids=["huge", "low"])
def test_numbers_that_python_does_not_write_out(encoding: Encoding, number: Any) -> None:
    user = {"role": "user", "content": "hi"}
    call = {"id": number, "function": {"name": "f", "arguments": {"a": number, number: 1}}}
    schema = {"type": "object", "properties": {"a": {"default": number, "enum": [number]}}}
    tried(lambda: render(encoding, [{"role": number}]))
    tried(lambda: render(encoding, [user, {"role": "tool", "tool_call_id": number}]))
    tried(lambda: render(encoding, [user], reasoning=number))
    tried(lambda: render(encoding, [user], tools=[{"type": number}]))
    result = {"role": "tool", "tool_call_id": number, "content": "x"}
    tool = {"type": "function", "name": "f", "parameters": schema}
    assert render(encoding, [{"role": "assistant", "tool_calls": [call]}, result], tools=[tool])


def test_a_reference_by_a_very_long_number_leads_nowhere(encoding: Encoding) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/b/" + "9" * 5000}}, "b": [1]}
    assert render(encoding, [], tools=[{"type": "function", "name": "f", "parameters": schema}])


def test_ten_thousand_results_find_their_calls(encoding: Encoding) -> None:
    names = [f"f{i % 7}" for i in range(10_000)]
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in names]
    by_name = [{"role": "tool", "content": "x", "name": name} for name in names[::3]]
    rest: list[Any] = [{"role": "tool", "content": "x"}] * (len(names) - len(by_name))
    messages: list[Any] = [{"role": "assistant", "tool_calls": calls}, *by_name, *rest]
    _, turns = read_messages(messages, None)
    left = list(names)
    for name in names[::3]:
        left.remove(name)
    assert [turn.name for turn in turns[-len(rest) :]] == [f"functions.{name}" for name in left]
    with pytest.raises(MessageError, match="a tool result needs the tool_call_id"):
        read_messages([*messages, rest[0]], None)


def test_long_words_of_tools_are_said_in_full(encoding: Encoding) -> None:
    word, other = "x" * 50_000, "null" * 200
    schema = {
        "type": "object",
        "properties": {
            word: {"type": "string", "enum": [other, "b"], "nullable": True},
            "b": {"type": "string", "description": f"one {word} two", "default": word},
        },
        "required": [word],
    }
    tool = {"name": "f", "description": f"says {word}\n{other}", "parameters": schema}
    ids = render(encoding, [], tools=[{"type": "function", "function": tool}])
    short = json.dumps(tool).replace(word, "WORD").replace(other, "null_")
    same = render(encoding, [], tools=[{"type": "function", "function": json.loads(short)}])
    text = encoding.decode(same).replace("WORD", word).replace("null_", other)
    assert encoding.decode(ids) == text
