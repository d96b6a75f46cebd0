"""Constrained output through the engine: every answer and call is what was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.result import Result, collect
from gptoss_mlx.errors import GptOssError, GrammarError, MessageError, SamplingError
from gptoss_mlx.harmony import render
from gptoss_mlx.harmony.encoding import CALL, END, RETURN, VOCAB_SIZE
from tests.support.backends import ENGINES, engine_on
from tests.support.checkpoints import Shape
from tests.support.sampling_oracle import permits
from tests.support.schemas import CLOSING
from tests.support.scripted_model import Scripted, encoding, ids_of

SHAPE = Shape(layers=1, hidden=64, intermediate=32, experts=2, active=1, vocab=VOCAB_SIZE)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["a", "long", None]},
        "size": {"type": "number", "minimum": -3, "maximum": 12.5},
        "more": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
CITY = {"type": "object", "properties": {"city": {"enum": ["Delhi", "Oslo"]}}, "required": ["city"]}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [
    tool("weather", parameters={**CITY, "additionalProperties": False}),
    {"type": "function", "name": "flat", "parameters": SCHEMA, "strict": True},
    tool("loose", parameters={"type": "object", "not": {}}),
    tool("bare"),
]
HURRY: dict[str, Any] = {
    "temperature": 1.5,
    "logit_bias": {**dict.fromkeys(CLOSING, 14.0), END: 12.0, CALL: 12.0},
    "max_tokens": 60,
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, checkpoint_of: Callable[..., Path]) -> Engine:
    return engine_on(request.param, checkpoint_of(SHAPE), context=400)


def begins_a_text(text: str, grammar: dict[str, Any], engine: Engine) -> bool:
    """Whether the tokens of a text are permitted, one after the other."""
    request = engine.preprocessor.request([5], reasoning_budget=0, **grammar)
    state: Any = request.grammar
    for id in encoding().encode_special("<|channel|>final<|message|>" + text):
        if not permits(state.mask, id):
            return False
        state = state.advance(id)
    return True


def test_answers_satisfy_their_schema_together_and_alone(engine: Engine) -> None:
    """Several at once; what each says does not depend on the others, and a seed repeats it."""
    options = {**HURRY, "response_format": FORMAT, "reasoning_budget": 3}
    prompts = [[5 + i] * (1 + i) for i in range(3)]
    together = engine.generate_many(prompts, seed=3, **options)
    for prompt, result in zip(prompts, together, strict=True):
        assert engine.generate(prompt, seed=3, **options).token_ids == result.token_ids
        if result.finish_reason == "stop":
            jsonschema.validate(json.loads(result.text), SCHEMA)
            assert result.token_ids[-1] == RETURN
    assert any(result.finish_reason == "stop" for result in together)


def test_a_text_that_is_cut_off_is_the_beginning_of_one(engine: Engine) -> None:
    whole = engine.generate([7], seed=1, response_format={"type": "json_object"}, **HURRY)
    for cut in range(1, min(30, len(whole.token_ids) - 1), 6):
        options = {**HURRY, "max_tokens": cut, "response_format": {"type": "json_object"}}
        result = engine.generate([7], seed=1, **options)
        assert result.token_ids == whole.token_ids[:cut]
        assert (result.finish_reason, result.limit) == ("length", "max_tokens")
        assert begins_a_text(result.text.rstrip("\ufffd"), {"regex": r"(?s)\{.*"}, engine)


@pytest.mark.parametrize(
    ("constraint", "matches"),
    [
        ({"regex": r"[0-9]{2,4}!"}, r"[0-9]{2,4}!"),
        ({"grammar": 'start: "n" pair+\npair: "(" pair? ")"'}, r"n[()]+"),
    ],
    ids=["regex", "grammar"],
)
def test_an_answer_by_regex_or_lark(engine: Engine, constraint: Any, matches: str) -> None:
    result = engine.generate([9], seed=2, reasoning_budget=0, **HURRY, **constraint)
    if result.finish_reason == "stop":
        assert re.fullmatch(matches, result.text)
    assert result.text
    raw = engine.generate([9], raw=True, seed=2, **HURRY, **constraint)
    assert re.fullmatch(matches, raw.text) or raw.finish_reason == "length"


def assert_called(result: Result, names: set[str]) -> None:
    schemas = {"weather": TOOLS[0]["function"]["parameters"], "flat": SCHEMA}
    assert result.text == ""
    if result.finish_reason == "length":
        return
    assert result.finish_reason == "tool_calls"
    assert result.token_ids[-1] == CALL
    (call,) = result.tool_calls
    assert call.name in names
    arguments = json.loads(call.arguments)
    jsonschema.validate(arguments, schemas.get(call.name, {"type": "object"}))


ALL = {"weather", "flat", "loose", "bare"}
CHOICES: dict[str, tuple[Any, set[str]]] = {
    "required": ("required", ALL),
    "weather": ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
    **{name: ({"type": "function", "name": name}, {name}) for name in ("flat", "loose", "bare")},
}


@pytest.mark.parametrize(("choice", "names"), CHOICES.values(), ids=CHOICES.keys())
def test_a_call_that_must_be(engine: Engine, choice: Any, names: set[str]) -> None:
    options = {**HURRY, "tools": TOOLS, "tool_choice": choice}
    results = [engine.generate([11], seed=seed, **options) for seed in range(2)]
    for result in results:
        assert_called(result, names)
    assert any(result.tool_calls for result in results)


def test_none_is_no_call_and_auto_may_be_one(engine: Engine) -> None:
    tools: dict[str, Any] = {**HURRY, "tools": TOOLS, "max_tokens": 24}
    none = engine.generate([13], seed=1, tool_choice="none", **tools)
    assert none.tool_calls == ()
    assert none.preamble == ""
    auto = engine.generate([13], seed=1, **tools)
    assert engine.generate([13], seed=1, tool_choice="auto", **tools).token_ids == auto.token_ids
    if auto.tool_calls:
        assert_called(auto, ALL)


@pytest.mark.parametrize("budget", [0, 1, 2, 5])
def test_a_budget_closes_the_reasoning(engine: Engine, budget: int) -> None:
    options = {**HURRY, "logit_bias": {}, "max_tokens": budget + 12, "reasoning_budget": budget}
    result = engine.generate([15], seed=budget, **options)
    analysis = [e for e in result.tokens if e.channel == "analysis" and e.kind == "content"]
    assert len([e for e in analysis if e.id is not None]) <= budget
    whole = encoding().decode(result.token_ids)
    assert "<|channel|>final<|message|>" in whole
    assert whole.count("<|channel|>analysis<|message|>") <= bool(budget)


def test_a_stop_string_a_bias_and_logprobs_beside_a_schema(engine: Engine) -> None:
    options: dict[str, Any] = {**HURRY, "response_format": FORMAT, "reasoning_budget": 0}
    result = engine.generate([17], seed=5, stop='"kind"', top_logprobs=2, **options)
    assert '"kind"' not in result.text
    assert result.finish_reason == "stop"
    options["max_tokens"] = 8
    assert all(e.logprob is not None for e in result.tokens if e.id is not None)
    biased = {**options, "logit_bias": {**HURRY["logit_bias"], 7: 100.0}}
    assert begins_a_text(
        engine.generate([17], seed=5, **biased).text[:9], options_of(FORMAT), engine
    )


def options_of(response_format: Any) -> dict[str, Any]:
    return {"response_format": response_format}


def test_the_prompt_is_the_same_under_a_constraint() -> None:
    scripted = Scripted("<|channel|>final<|message|>{}<|return|>")
    list(scripted.engine.stream("hi", max_tokens=1, response_format=FORMAT, reasoning_budget=9))
    messages = [{"role": "user", "content": "hi"}]
    assert scripted.held() == render(encoding(), messages, response_format=FORMAT)


def test_a_vocabulary_that_cannot_say_it_is_an_error_and_the_engine_goes_on() -> None:
    scripted = Scripted([0], [0])
    engine, preprocessor = scripted.engine, scripted.engine.preprocessor
    config = replace(preprocessor.config, vocab_size=120)  # bytes below 0xbd, as tokens
    engine.preprocessor = replace(preprocessor, config=config)
    with pytest.raises(GrammarError, match="regex: no token of the model's vocabulary"):
        list(scripted.engine.stream([5], raw=True, regex="\u00e9"))
    assert ids_of(list(scripted.engine.stream([5], raw=True, max_tokens=1))) == [0]


REFUSED: list[tuple[dict[str, Any], type[GptOssError], str]] = [
    ({"regex": "a", "grammar": 'start: "a"'}, MessageError, "grammar and regex: give one of them"),
    ({"regex": "a", "response_format": FORMAT}, MessageError, "response_format and regex: give"),
    ({"regex": "a("}, GrammarError, "^regex: .*unclosed group"),
    ({"grammar": "start: x"}, GrammarError, '^grammar: .*unknown name: "x"'),
    ({"tool_choice": "required"}, MessageError, "'required', but there are no tools"),
    ({"tool_choice": "any"}, MessageError, "'any', but must be auto, required, none or a function"),
    ({"tool_choice": {"type": "tool"}, "tools": TOOLS}, MessageError, "tool_choice is {'type'"),
    (
        {"tool_choice": {"type": "function", "name": "g"}, "tools": TOOLS},
        MessageError,
        "'g' is not",
    ),
    ({"tool_choice": {"type": "function", "function": 5}}, MessageError, "None is not among"),
    ({"reasoning_budget": -1}, SamplingError, "reasoning_budget is -1"),
    ({"reasoning_budget": True}, SamplingError, "reasoning_budget is True"),
    ({"reasoning_budget": 1.5}, SamplingError, "reasoning_budget is 1.5"),
    ({"raw": True, "reasoning_budget": 1}, MessageError, "raw mode knows no reasoning"),
    ({"raw": True, "tool_choice": "none"}, MessageError, "raw mode knows no"),
    ({"constrain_headers": False, "regex": "a"}, MessageError, "regex needs the header grammar"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        GrammarError,
        '^response_format: "not" at # is not supported$',
    ),
    (
        {"tools": [tool("f", strict=True, parameters={"properties": {"a": {"if": {}}}})]},
        GrammarError,
        '^tool f: "if" at #/properties/a is not supported$',
    ),
    ({"tools": [tool("f", strict="yes")]}, MessageError, "strict is 'yes', not true or false"),
]


@pytest.mark.parametrize(("options", "kind", "says"), REFUSED)
def test_what_cannot_be_enforced_fails_at_the_call(
    options: dict[str, Any], kind: type[GptOssError], says: str
) -> None:
    with pytest.raises(kind, match=says) as raised:
        Scripted([0]).engine.stream([5], **options)
    assert "\n" not in str(raised.value)


def test_a_response_format_without_the_header_grammar_is_only_said() -> None:
    unsupported = {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}
    scripted = Scripted("<|channel|>final<|message|>hi<|return|>")
    events = scripted.engine.stream("hi", response_format=unsupported, constrain_headers=False)
    assert collect(events).text == "hi"
