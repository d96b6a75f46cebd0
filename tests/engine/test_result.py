"""A stream collected: which text is the answer, which reasoning, which a call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptoss_mlx.engine.events import FinishEvent, PrefillEvent, Timings, TokenEvent
from gptoss_mlx.engine.result import Result, collect
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, TO_F, F, Scripted

PREAMBLE = "<|channel|>commentary<|message|>"
TO_G = "<|channel|>commentary to=functions.g <|constrain|>json<|message|>"


def result_of(reply: str, **options: Any) -> Result:
    scripted = Scripted(reply)
    options = {"constrain_headers": False, "max_tokens": len(scripted.replies[0]), **options}
    return scripted.engine.generate("hi", tools=() if options.get("raw") else [F], **options)


def calls_of(result: Result) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in result.tool_calls]


def test_reasoning_preamble_and_calls() -> None:
    reply = (
        f"{ANALYSIS}I need both.{AGAIN}{PREAMBLE}Let me look.{AGAIN}"
        f'{TO_F}{{"a": 1}}<|call|><|start|>assistant{TO_G}{{"b": "é\U0001fadc"}}<|call|>'
    )
    first = result_of(reply)
    assert (first.reasoning, first.preamble, first.text) == ("I need both.", "Let me look.", "")
    assert calls_of(first) == [("f", '{"a": 1}')]  # the stream ends with the first call
    assert first.finish_reason == "tool_calls"
    both = result_of(reply.replace("<|call|><|start|>", "<|end|><|start|>"))
    assert [(name, json.loads(args)) for name, args in calls_of(both)] == [
        ("f", {"a": 1}),
        ("g", {"b": "é\U0001fadc"}),
    ]
    ids = [call.id for call in both.tool_calls]
    assert len(set(ids)) == 2
    assert all(id.startswith("call_") for id in ids)


def test_a_call_of_a_builtin_tool_is_no_functions_of_that_name() -> None:
    def call_of(header: str, text: str) -> dict[str, object]:
        (call,) = result_of(f"{header}{text}<|call|>").tool_calls
        recipient = header.split("to=")[1].split()[0].split("<")[0]
        assert call.recipient == recipient
        return {**call.message, "id": None}

    python = {"name": "python", "arguments": "1 + 1"}
    code = call_of("<|channel|>analysis to=python code<|message|>", "1 + 1")
    assert code == {"id": None, "type": "python", "function": python}
    function = call_of("<|channel|>commentary to=functions.python<|message|>", "1 + 1")
    assert function == {"id": None, "type": "function", "function": python}
    find = {"name": "browser.find", "arguments": "{}"}
    assert call_of("<|channel|>analysis to=browser.find<|message|>", "{}") == {
        "id": None,
        "type": "browser",
        "function": find,
    }


def test_two_calls_of_one_function_are_two() -> None:
    result = result_of(f"{TO_F}{{}}{AGAIN}{TO_F}{{}}<|call|>")
    assert calls_of(result) == [("f", "{}"), ("f", "{}")]


def test_a_call_without_arguments_is_a_call() -> None:
    assert calls_of(result_of(f"{TO_F}<|call|>")) == [("f", "")]
    assert calls_of(result_of(f"{TO_F}{AGAIN}{TO_G}<|call|>")) == [("f", ""), ("g", "")]
    assert calls_of(result_of(f"{TO_F}{AGAIN}{TO_F}<|call|>")) == [("f", ""), ("f", "")]


def test_a_call_cut_short_has_what_was_written() -> None:
    result = result_of(f'{TO_F}{{"a": [1,')
    assert calls_of(result) == [("f", '{"a": [1,')]
    assert result.finish_reason == "length"


@pytest.mark.parametrize("stray", ["<|constrain|>", "<|message|>", "<|reserved_201000|>"])
def test_a_stray_special_token_does_not_split_a_call(stray: str) -> None:
    assert calls_of(result_of(f'{TO_F}{{"a":{stray} 1}}<|call|>')) == [("f", '{"a": 1}')]
    assert calls_of(result_of(f"{TO_F}{stray}{{}}<|call|>")) == [("f", "{}")]


def test_a_call_whose_header_lacks_its_end() -> None:
    result = result_of(' to=functions.f<|channel|>commentary <|constrain|>json{"a": 1}<|call|>')
    assert [(name, json.loads(args)) for name, args in calls_of(result)] == [("f", {"a": 1})]


def test_a_builtin_tool_keeps_its_name() -> None:
    reply = "<|channel|>analysis to=browser.search code<|message|>{}<|call|>"
    result = result_of(reply)
    assert calls_of(result) == [("browser.search", "{}")]
    assert result.reasoning == ""


@pytest.mark.parametrize(
    ("reply", "reasoning", "text"),
    [
        (f"{ANALYSIS}so far", "so far", ""),
        (f"{ANALYSIS}hm{AGAIN}{FINAL}so far", "hm", "so far"),
        (f"{ANALYSIS}hm{AGAIN}<|channel|>fin", "hm", ""),
        (f"{ANALYSIS}a{AGAIN}{ANALYSIS}b{AGAIN}{FINAL}c<|return|>", "ab", "c"),
        ("no header at all<|return|>", "", "no header at all"),
    ],
)
def test_unfinished_and_malformed_messages_lose_nothing(
    reply: str, reasoning: str, text: str
) -> None:
    result = result_of(reply)
    assert (result.reasoning, result.text) == (reasoning, text)


def test_raw_text_is_all_of_it() -> None:
    result = result_of("one <|start|>two<|return|>", raw=True)
    assert (result.text, result.reasoning, result.tool_calls) == ("one <|start|>two", "", ())


def test_ids_events_and_counts_are_those_of_the_stream() -> None:
    timings = Timings(0.5, 0.25, 0.6, prefill_tokens=30, reused_tokens=5, decode_tokens=2)
    tokens = [
        TokenEvent(7, "a", logprob=-0.5, top_logprobs=((7, -0.5),)),
        TokenEvent(None, "b"),
        TokenEvent(8, ""),
    ]
    finish = FinishEvent("stop", 35, 2, 9, timings)
    result = collect([PrefillEvent(0, 35, 5), *tokens, finish])
    assert result.text == "ab"
    assert result.token_ids == (7, 8)
    assert result.tokens == tuple(tokens)
    assert (result.prompt_tokens, result.completion_tokens, result.seed) == (35, 2, 9)
    assert result.timings is timings
    assert (timings.prefill_rate, timings.decode_rate) == (60, 8)
    assert (Timings().prefill_rate, Timings().decode_rate) == (0, 0)


def test_a_stream_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="not finished"):
        collect([TokenEvent(7, "a")])
