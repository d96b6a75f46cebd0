"""The header grammar: what it admits the parser understands, and it never gets stuck."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gptoss_mlx.engine.constraint import Constraint
from gptoss_mlx.harmony import Encoding, Headers, HeaderState, Mask, Parser, render_reply
from gptoss_mlx.harmony.compiler import Compiler
from gptoss_mlx.harmony.encoding import (
    CALL,
    CHANNEL,
    END,
    ENDOFTEXT,
    MESSAGE,
    RETURN,
    START,
    VOCAB_SIZE,
)
from gptoss_mlx.harmony.header import read_header
from gptoss_mlx.harmony.headers import _calls, _plain
from gptoss_mlx.harmony.text_grammar import permits

TOOLS = ("get_weather", "get_weather2", "f", "a-b_c")
CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"tools": TOOLS},
    {"response_format": {"type": "json_object"}},
    {"tools": TOOLS, "builtin": ("browser", "python"), "response_format": {"type": "json_object"}},
]


def reachable(start: HeaderState) -> list[HeaderState]:
    """Every state that permitted tokens lead to."""
    found, todo = [start], [start]
    while todo:
        state = todo.pop()
        ends = (END, CALL, RETURN)
        ids = state.mask.allow or [id for id in ends if permits(state.mask, id)]
        for id in (*ids, *([] if state.mask.allow else [0])):
            after = state.advance(id)
            if after not in found:
                found.append(after)
                todo.append(after)
    return found


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_no_state_is_stuck_and_every_message_ends(
    encoding: Encoding, options: dict[str, Any]
) -> None:
    states = reachable(Headers(encoding, **options).start())
    for state in states:
        if state.header is None:
            assert state.mask.allow
        else:
            ends = [id for id in range(199998, 201088) if permits(state.mask, id)]
            # An answer is not empty: before its first token no end is permitted.
            assert ends or (state.header.channel == "final" and state.advance(0) is not state)
            assert len(ends) <= 1
            assert permits(state.mask, 0)
    said = {(state.header.channel, state.header.recipient) for state in states if state.header}
    functions = {("commentary", f"functions.{name}") for name in options.get("tools", ())}
    preamble = {("commentary", None)} if functions else set()
    builtin = ("browser.search", "browser.open", "browser.find", "python")
    builtins = {("analysis", name) for name in builtin if "builtin" in options}
    assert said == {("analysis", None), ("final", None)} | functions | preamble | builtins


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_what_the_grammar_admits_parses_into_what_it_says(
    encoding: Encoding, options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(7)
    headers = Headers(encoding, **options)
    for _ in range(300):
        parser, state = Parser(encoding), headers.start()
        expected: list[tuple[Any, ...]] = []
        last = 0
        while last not in (RETURN, CALL):
            if state.header is None:
                assert state.mask.allow is not None
                last = int(rng.choice(state.mask.allow))
            else:
                least = int(state.header.channel == "final")
                text = rng.integers(0, 199998, int(rng.integers(least, 5))).tolist()
                for id in text:
                    assert permits(state.mask, id)
                    state = state.advance(id)
                    assert state is state.advance(id)
                    parser.feed(id)
                said = (state.header.channel, state.header.recipient, state.header.content_type)
                expected.append((*said, encoding.decode(text)))
                last = next(id for id in (END, RETURN, CALL) if permits(state.mask, id))
            parser.feed(last)
            state = state.advance(last)
        parser.finish()
        found = [(m.channel, m.recipient, m.content_type, m.text) for m in parser.messages]
        assert found == expected


CALLING = {"function": {"name": "get_weather", "arguments": "{}"}}


@pytest.mark.parametrize(
    "reply",
    [
        {"role": "assistant", "content": "Hi"},
        {"role": "assistant", "content": "Hi", "reasoning": "They greet."},
        {"role": "assistant", "content": "Wait.", "reasoning": "x", "tool_calls": [CALLING]},
        {"role": "assistant", "tool_calls": [CALLING]},
    ],
)
def test_rendered_replies_are_admitted(encoding: Encoding, reply: dict[str, Any]) -> None:
    state = Headers(encoding, tools=TOOLS).start()
    for id in render_reply(encoding, reply):
        assert permits(state.mask, id)
        state = state.advance(id)
    assert state.mask == Mask(allow=(START,))


@pytest.mark.parametrize(
    "text",
    [
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        " to=functions.f<|channel|>commentary<|message|>{}<|call|>",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        "<|channel|>final <|constrain|>json<|message|>{}<|return|>",
        "<|channel|>commentary<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    ],
)
def test_headers_in_the_models_own_tokens_are_admitted(encoding: Encoding, text: str) -> None:
    state = Headers(encoding, tools=TOOLS, response_format={"type": "json_object"}).start()
    for id in encoding.encode_special(text):
        assert permits(state.mask, id)
        state = state.advance(id)


def after(encoding: Encoding, text: str, **options: Any) -> HeaderState:
    state = Headers(encoding, **options).start()
    for id in encoding.encode_special(text):
        state = state.advance(id)
    return state


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("<|channel|>analysis<|message|>", END),
        ("<|channel|>commentary<|message|>", END),
        ("<|channel|>final<|message|>", RETURN),
        (" to=functions.f<|channel|>commentary<|message|>", CALL),
    ],
)
def test_only_the_fitting_special_ends_a_message(encoding: Encoding, text: str, end: int) -> None:
    state = after(encoding, text, tools=TOOLS, vocab_size=201216)
    if end == RETURN:
        assert set(range(201216)) - set(state.mask.ban or ()) == {*range(199998)}
        state = state.advance(5)
    assert set(range(201216)) - set(state.mask.ban or ()) == {*range(199998), end}
    assert state.advance(5).mask is state.mask


def test_without_tools_or_format_only_plain_headers_are_open(encoding: Encoding) -> None:
    assert after(encoding, "").mask == Mask(allow=(200005,))
    channels = {id for name in ("analysis", "final") for id in encoding.encode(name)}
    assert set(after(encoding, "<|channel|>").mask.allow or ()) == channels
    assert after(encoding, "<|channel|>final").mask == Mask(allow=(MESSAGE,))


def test_tokens_that_are_not_permitted_lead_back_to_a_header(encoding: Encoding) -> None:
    headers = Headers(encoding, tools=TOOLS)
    assert headers.start().advance(5).mask.ban  # a header of other tokens is let through
    for wrong in (5, MESSAGE, ENDOFTEXT, 200013, 201087, 10**6, -1, END, CALL, RETURN):
        for state in reachable(headers.start()):
            lost = state.advance(wrong)
            assert lost.mask.allow or lost.mask.ban
            back = lost.advance(START).advance(173781)
            assert back is headers.start()


def test_headers_are_the_tokens_of_their_texts(encoding: Encoding) -> None:
    tools, builtin = ("f", "get_weather-2", "x" * 128), ("browser", "python")
    start = Headers(encoding, tools=tools, builtin=builtin, response_format={}).start()
    for text in [*_plain(True, True, True), *_calls(tools, builtin, True)]:
        state = start
        for id in encoding.encode_special(text):
            assert state.mask.allow is not None
            assert id in state.mask.allow
            state = state.advance(id)
        assert state.header == read_header(text)


def test_a_turn_that_must_call_thinks_and_speaks_once(encoding: Encoding) -> None:
    """Else a model that wants to answer would go on thinking, or speaking, and never call."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    compiler = Compiler(lambda: encoding.trie, VOCAB_SIZE)
    constraint = Constraint(tools=tools, tool_choice="required")
    state: Any = constraint.harmony(encoding, compiler, VOCAB_SIZE)
    channels = {name: encoding.encode(name)[0] for name in ("analysis", "commentary", "final")}
    again = "x<|end|><|start|>assistant"
    for said, left in (
        ("", {"analysis", "commentary"}),
        ("<|channel|>analysis<|message|>", {"commentary"}),
        ("<|channel|>commentary<|message|>", {"commentary"}),
    ):
        for id in encoding.encode_special(said + again if said else ""):
            assert permits(state.mask, id)
            state = state.advance(id)
        channel = state.advance(CHANNEL)
        assert {name for name, id in channels.items() if permits(channel.mask, id)} == left
    speaks = state.advance(CHANNEL).advance(channels["commentary"])
    assert not permits(speaks.mask, MESSAGE)
