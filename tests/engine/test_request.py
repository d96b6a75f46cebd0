"""What a stream may be asked for: every wrong prompt or option fails at the call, in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_mlx.engine.engine import _generation_defaults
from gptoss_mlx.errors import CheckpointError, ContextError, MessageError, SamplingError
from gptoss_mlx.harmony import render
from tests.support.scripted_model import Scripted, encoding, finish_of, ids_of, tokenizer

REPLY = "<|channel|>final<|message|>hi<|return|>"


class Plain:
    """A tokenizer of a model that knows no Harmony."""

    stop_ids = frozenset({2})
    vocab_size = 300
    harmony = None

    def encode(self, text: str, most: float = math.inf) -> list[int]:
        return [3 + byte for byte in text.encode()]

    def decoder(self) -> Any:
        return tokenizer().decoder()


def read_by(scripted: Scripted, prompt: Any, **options: Any) -> list[int]:
    """The ids a stream with one token of an answer has read."""
    list(scripted.engine.stream(prompt, max_tokens=1, **options))
    return scripted.held()


def test_a_text_is_a_users_message() -> None:
    expected = render(encoding(), [{"role": "user", "content": "hi <|end|>"}])
    assert read_by(Scripted(REPLY), "hi <|end|>") == expected


def test_an_empty_text_is_a_message_too() -> None:
    assert read_by(Scripted(REPLY), "") == render(encoding(), [{"role": "user", "content": ""}])


@pytest.mark.parametrize("kind", [list, tuple])
def test_messages_with_all_that_belongs_to_them(kind: Any) -> None:
    messages = kind([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}])
    options: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "system": "Be kind.",
        "reasoning": "high",
        "response_format": {"type": "json_object"},
    }
    assert read_by(Scripted(REPLY), messages, **options) == render(encoding(), messages, **options)


@pytest.mark.parametrize(
    "ids",
    [[5, 6, 7], (5, 6, 7), range(5, 8), np.array([5, 6, 7]), [np.int32(5), np.uint32(6), 7]],
    ids=["list", "tuple", "range", "array", "numpy ints"],
)
@pytest.mark.parametrize("raw", [False, True])
def test_token_ids_of_any_kind_are_read_as_they_are(ids: Any, raw: bool) -> None:
    held = read_by(Scripted(REPLY), ids, raw=raw)
    assert held == [5, 6, 7]
    assert {type(id) for id in held} == {int}


def test_raw_mode_continues_a_text_in_which_specials_are_tokens() -> None:
    text = "<|start|>assistant and <|end|>"
    assert read_by(Scripted([64]), text, raw=True) == encoding().encode_special(text)


def test_a_model_without_harmony_is_always_raw() -> None:
    scripted = Scripted([70, 2], tokenizer_=Plain())
    events = list(scripted.engine.stream("hi"))
    assert scripted.held()[:2] == [3 + ord("h"), 3 + ord("i")]
    assert ids_of(events) == [70, 2]
    assert finish_of(events).reason == "stop"


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ([], {}, "prompt is empty"),
        ("", {"raw": True}, "prompt is empty"),
        (None, {}, "a text, token ids or a list of messages"),
        (5, {}, "a text, token ids or a list of messages"),
        (b"abc", {}, "a text, token ids or a list of messages"),
        (USER, {}, "a text, token ids or a list of messages"),
        ({5, 6}, {}, "a text, token ids or a list of messages"),
        (["hi"], {}, "message 0"),
        ([USER, "hi"], {}, "message 1"),
        ([USER, 5], {}, "message 1"),
        ([5, USER], {}, "message 0"),
        ([5, 6.0], {}, "message 0"),
        (np.array([[5, 6]]), {}, "message 0"),
        ([{"role": "robot", "content": "hi"}], {}, "role 'robot'"),
        ([{"role": "user"}], {}, "content is missing"),
        ([5, 201088], {}, "token id 201088 is outside the model's vocabulary of 201088"),
        ([-1, 5], {}, "token id -1 is outside"),
        ([USER], {"raw": True}, "takes no list of messages"),
        ("hi", {"raw": True, "system": "x"}, "raw mode knows no system message"),
        ("hi", {"raw": True, "tools": [{"type": "browser"}]}, "raw mode knows no"),
        ("hi", {"raw": True, "response_format": {"type": "json_object"}}, "raw mode knows no"),
        ("hi", {"reasoning": "hard"}, "reasoning effort 'hard'"),
        ("hi", {"tools": [{"type": "hammer"}]}, "type 'hammer'"),
        ([5], {"tools": [{"type": "hammer"}]}, "type 'hammer'"),
        ("hi", {"response_format": {"type": "xml"}}, "type 'xml'"),
    ],
)
def test_a_bad_prompt_fails_at_the_call(prompt: Any, options: dict[str, Any], says: str) -> None:
    scripted = Scripted(REPLY)
    with pytest.raises(MessageError) as raised:
        scripted.engine.stream(prompt, **options)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert scripted.log == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_tokens": 0}, "max_tokens is 0, but must be a whole number above 0"),
        ({"max_tokens": -3}, "max_tokens is -3, but must be a whole number above 0"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5, but must be a whole number above 0"),
        ({"max_tokens": "9"}, "max_tokens is '9', but must be a whole number above 0"),
        ({"stop": ""}, "a stop string is '', but must be a text and not empty"),
        ({"stop": ["a", ""]}, "a stop string is '', but must be a text and not empty"),
        ({"stop": ["a", 5]}, "a stop string is 5, but must be a text and not empty"),
        ({"temperature": -1}, "temperature is -1, but must be from 0 to 100"),
        ({"top_k": 1.5}, "top_k is 1.5, but must be a whole number"),
        ({"logit_bias": {201088: 1}}, "token of logit_bias is 201088, but must be from 0 to"),
    ],
)
def test_a_bad_option_fails_at_the_call(options: dict[str, Any], says: str) -> None:
    scripted = Scripted(REPLY)
    with pytest.raises(SamplingError) as raised:
        scripted.engine.stream("hi", **options)
    assert str(raised.value).startswith(says)
    assert scripted.log == []


def test_an_unknown_option_is_a_type_error_that_lists_the_known() -> None:
    scripted = Scripted(REPLY)
    with pytest.raises(TypeError, match=r"'temprature' is no sampling option: .*temperature"):
        scripted.engine.stream("hi", temprature=1)
    with pytest.raises(TypeError, match="'maximum' is no sampling option"):
        scripted.engine.generate("hi", maximum=1)


def test_a_count_is_what_is_read_and_may_be_more_than_the_context() -> None:
    messages = [{"role": "user", "content": "word " * 100}]
    options: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "system": "Be kind.",
        "reasoning": "high",
        "response_format": {"type": "json_object"},
        "max_tokens": 3,
    }
    rendered = {name: value for name, value in options.items() if name != "max_tokens"}
    expected = len(render(encoding(), messages, **rendered))
    for context in (4096, 20):
        assert Scripted(context=context).engine.count(messages, **options) == expected
    assert Scripted().engine.count("one two", raw=True) == 2
    with pytest.raises(ContextError, match="131072"):
        Scripted().engine.count("word " * 550_000)


@pytest.mark.parametrize("stop", [None, (), []])
def test_no_stop_strings_is_none_or_empty(stop: Any) -> None:
    assert finish_of(list(Scripted(REPLY).engine.stream("hi", stop=stop))).reason == "stop"


def test_the_checkpoints_defaults_are_used_and_overridden() -> None:
    scripted = Scripted([64], [64], [64], defaults={"temperature": 0.0, "top_p": 0.9})
    for options in ({}, {"temperature": 0.7, "top_k": 5}, {"temperature": None, "top_p": 1}):
        list(scripted.engine.stream([5], max_tokens=1, **options))
    used = [(s.temperature, s.top_p, s.top_k) for s, *_ in scripted.samplings]
    assert used == [(0.0, 0.9, 0), (0.7, 0.9, 5), (0.0, 1, 0)]


@pytest.mark.parametrize(
    ("content", "defaults"),
    [
        (None, {}),
        ({}, {}),
        ({"do_sample": True, "eos_token_id": [200002]}, {}),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1},
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1},
        ),
        ({"repetition_penalty": 1.1, "top_k": None}, {"repetition_penalty": 1.1}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
    ],
)
def test_generation_config_is_read(
    tmp_path: Path, content: dict[str, Any] | None, defaults: dict[str, Any]
) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert _generation_defaults(tmp_path) == defaults


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"temperature": -1}', "temperature is -1, but must be from 0 to 100"),
        ('{"top_p": "high"}', "top_p is 'high', but must be a number"),
        ("[1]", "list"),
        ("{", "not valid JSON"),
    ],
)
def test_a_broken_generation_config_is_named(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(content)
    with pytest.raises(CheckpointError) as raised:
        _generation_defaults(tmp_path)
    assert str(raised.value).startswith(f"{path}: ")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("text", ["word " * 2_000_000, "\U0001f600" * 500_000])
def test_a_text_that_cannot_fit_is_refused_with_the_limits(text: str, raw: bool) -> None:
    with pytest.raises(ContextError) as raised:
        Scripted([64]).engine.stream(text, raw=raw)
    assert str(raised.value) == (
        "the prompt has more than 16384 tokens, but the context holds 4096;"
        " the model allows a context of 131072"
    )


def test_a_text_that_does_not_fit_is_counted() -> None:
    """As far as that takes little time; a prompt of as many tokens as are told is as long."""
    scripted = Scripted([64], context=4096)
    with pytest.raises(ContextError) as raised:
        scripted.engine.stream("word " * 6000)
    count = int(str(raised.value).split()[3])
    rendered = Scripted([64], context=131072).engine._request("word " * 6000, {}).ids
    assert count == len(rendered) > 6000


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 10**5000},
        {"temperature": "x" * 9999},
        {"logit_bias": {10**5000: 1}},
        {"logit_bias": ["x"] * 9999},
        {"seed": -(10**5000)},
        {"max_tokens": [1] * 9999},
        {"max_tokens": True},
        {"stop": [["x"] * 9999]},
        {"stop": 5},
    ],
)
def test_a_bad_value_of_any_size_is_one_short_line(options: dict[str, Any]) -> None:
    with pytest.raises(SamplingError) as raised:
        Scripted([64]).engine.stream("hi", **options)
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)
