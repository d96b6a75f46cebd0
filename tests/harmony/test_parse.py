"""The parser: goldens, agreement with the library on good streams, survival of bad ones."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_mlx.harmony import Encoding, ParsedMessage, Parser, Piece, render_reply

GOLDEN = Path(__file__).parent / "golden"
Said = tuple[str | None, str | None, str | None, str]


def parse(encoding: Encoding, ids: Iterable[int]) -> tuple[list[Piece], list[ParsedMessage]]:
    parser = Parser(encoding)
    pieces = [piece for id in ids for piece in parser.feed(id)]
    return pieces + parser.finish(), parser.messages


def said(messages: list[ParsedMessage]) -> list[Said]:
    return [(m.channel, m.recipient, m.content_type, m.text) for m in messages]


def check(encoding: Encoding, ids: list[int]) -> list[ParsedMessage]:
    """Parse, and check that nothing is lost and pieces and messages tell the same."""
    pieces, messages = parse(encoding, ids)
    whole = encoding.decode(ids)
    assert "".join(piece.text for piece in pieces) == whole
    assert all(piece.text for piece in pieces)
    if messages:
        assert "".join(message.raw for message in messages) == whole
    content = "".join(piece.text for piece in pieces if piece.kind == "content")
    assert content == "".join(message.text for message in messages)
    return messages


def test_golden_reasoning_response(encoding: Encoding) -> None:
    numbers = (GOLDEN / "test_simple_reasoning_response.txt").read_text().split()
    assert said(check(encoding, [int(number) for number in numbers])) == [
        ("analysis", None, None, 'User asks: "What is 2 + 2?" Simple arithmetic. Provide answer.'),
        ("final", None, None, "2 + 2 = 4."),
    ]


def test_golden_tool_call(encoding: Encoding) -> None:
    numbers = (GOLDEN / "test_simple_tool_call.txt").read_text().split()
    thought = 'User asks: "What is the weather in Tokyo?" We need to use lookup_weather tool.'
    assert said(check(encoding, [int(number) for number in numbers])) == [
        ("analysis", None, None, thought),
        ("analysis", "lookup_weather", "code", '{"location": "Tokyo"}'),
    ]


def test_golden_stream_with_builtin_tool(encoding: Encoding) -> None:
    text = (GOLDEN / "test_streamable_parser.txt").read_text(encoding="utf-8").rstrip()
    messages = check(encoding, encoding.encode_special(text))
    query = '{"query": "current US president July 2025", "topn": 10, "source": "news"}'
    assert said(messages)[1:] == [
        ("commentary", "browser.search", "code", query),
        ("commentary", "assistant", None, '{"result": "https://openai.com/"}'),
    ]
    assert messages[0].text.startswith('User asks "Who is the current US president?" It')
    assert [message.role for message in messages] == ["assistant", "assistant", "browser.search"]


def test_golden_tool_message(encoding: Encoding) -> None:
    text = (GOLDEN / "test_tool_response_parsing.txt").read_text(encoding="utf-8").rstrip()
    (message,) = check(encoding, encoding.encode_special(text))
    assert (message.role, message.recipient) == ("browser.search", "assistant")
    assert message.text == '{"result": "https://openai.com/"}'


CALL = "functions.get_weather"
ARGS = '{"a":1}'
CALLS: list[tuple[str, str | None]] = [
    (f" to={CALL}<|channel|>commentary <|constrain|>json<|message|>{ARGS}<|call|>", "json"),
    (f"<|channel|>commentary to={CALL} <|constrain|>json<|message|>{ARGS}<|call|>", "json"),
    (f"<|channel|>commentary to={CALL}<|constrain|>json<|message|>{ARGS}<|call|>", "json"),
    (f" to={CALL}<|channel|>commentary<|constrain|>json<|message|>{ARGS}<|call|>", "json"),
    (f" to={CALL}<|channel|>commentary json<|message|>{ARGS}<|call|>", "json"),
    (f"<|channel|>commentary to={CALL} code<|message|>{ARGS}<|call|>", "code"),
    (f"<|channel|>commentaryjson to={CALL}<|message|>{ARGS}<|call|>", "json"),
    (f"<|channel|>commentary {CALL} json<|message|>{ARGS}<|call|>", "json"),
    (f"<|channel|>commentary to= {CALL}<|message|>{ARGS}<|call|>", None),
    (f"<|channel|>analysis<|channel|>commentary to={CALL}<|message|>{ARGS}<|call|>", None),
]


def said_call(kind: str | None) -> Said:
    return ("commentary", CALL, kind, ARGS)


FIELD: list[tuple[str, list[Said]]] = [
    *((text, [said_call(kind)]) for text, kind in CALLS),
    ("<|channel|>final<|message|>Hi<|return|>", [("final", None, None, "Hi")]),
    ("<|channel|>final<|message|>Hi", [("final", None, None, "Hi")]),
    ("<|channel|>final <|constrain|>json<|message|>{}", [("final", None, "json", "{}")]),
    # missing channel, missing header, missing message token
    ("<|message|>Hi<|return|>", [(None, None, None, "Hi")]),
    (f" to={CALL}<|message|>{ARGS}<|call|>", [(None, CALL, None, ARGS)]),
    ("<|channel|><|message|>Hi<|end|>", [(None, None, None, "Hi")]),
    ("I must refuse<|end|>", [(None, None, None, "I must refuse")]),
    ("assistant is what I am", [(None, None, None, "assistant is what I am")]),
    ("<|channel|>analysis I must<|end|>", [("analysis", None, None, "I must")]),
    ("<|channel|>final Hi <|constrain|>there all<|end|>", [("final", None, None, "Hi there all")]),
    ("<|start|>assistant Hi friend<|end|>", [(None, None, None, "Hi friend")]),
    (
        "Sure, here it is<|channel|>final<|message|>Yes<|return|>",
        [(None, None, None, "Sure, here it is"), ("final", None, None, "Yes")],
    ),
    ("word " * 60, [(None, None, None, "word " * 60)]),
    # garbage in headers
    ("<|channel|>analysis garbage words<|message|>x<|end|>", [("analysis", None, None, "x")]),
    ("garbage<|channel|>final<|message|>x<|end|>", [("final", None, None, "x")]),
    ("<|channel|>final<|reserved_200013|><|message|>x<|end|>", [("final", None, None, "x")]),
    ("<|channel|>thoughts<|message|>x<|end|>", [("thoughts", None, None, "x")]),
    # specials in the wrong place
    ("<|message|>a<|message|>b<|constrain|>c<|return|>", [(None, None, None, "abc")]),
    (
        "<|start|>assistant<|start|>assistant<|channel|>final<|message|>x<|return|>",
        [("final", None, None, "x")],
    ),
    (
        "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b<|return|>",
        [("analysis", None, None, "a"), ("final", None, None, "b")],
    ),
    (
        "<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b<|return|>",
        [("analysis", None, None, "a"), ("final", None, None, "b")],
    ),
    (
        "<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>",
        [("analysis", None, None, "a"), ("final", None, None, "b")],
    ),
    (
        "<|channel|>analysis<|message|>a<|end|>assistant<|channel|>final<|message|>b<|return|>",
        [("analysis", None, None, "a"), ("final", None, None, "b")],
    ),
    # a stream cut in a header has no content to show
    ("", []),
    (" t", []),
    ("<|channel|>anal", []),
    ("<|channel|>analysis to=functions.ge", []),
    ("<|end|><|end|>", []),
]


@pytest.mark.parametrize(("text", "expected"), FIELD)
def test_variants_seen_in_the_field(encoding: Encoding, text: str, expected: list[Said]) -> None:
    assert said(check(encoding, encoding.encode_special(text))) == expected


def test_split_characters_are_held_and_broken_ones_replaced(encoding: Encoding) -> None:
    text = "👍🏽 你好 naïve 👨‍👩‍👧‍👦"
    ids = encoding.encode_special(f"<|channel|>final<|message|>{text}")
    pieces, messages = parse(encoding, ids)
    assert all("\ufffd" not in piece.text for piece in pieces)
    assert messages[0].text == text
    broken = 9552  # a space and the first two bytes of an emoji
    ids = encoding.encode_special("<|message|>")
    assert check(encoding, [*ids, broken, broken, *encoding.encode("x"), broken])[0].text == (
        " \ufffd \ufffdx \ufffd"
    )


def test_content_is_streamed_as_it_comes(encoding: Encoding) -> None:
    parser = Parser(encoding)
    for id in encoding.encode_special("<|channel|>final"):
        assert parser.feed(id) == []
    (opened,) = parser.feed(200008)
    assert opened == Piece("<|channel|>final<|message|>", "final", None, None, "header")
    (hello,) = encoding.encode("Hello")
    assert parser.feed(hello) == [Piece("Hello", "final", None, None, "content")]
    assert parser.feed(200002) == [Piece("<|return|>", "final", None, None, "header")]
    assert said(parser.messages) == [("final", None, None, "Hello")]
    assert parser.finish() == []


def test_headerless_text_is_not_held_for_ever(encoding: Encoding) -> None:
    parser = Parser(encoding)
    shown = [bool(parser.feed(encoding.encode(" word")[0])) for _ in range(40)]
    assert any(shown[:32])
    assert all(shown[32:])


def test_well_formed_streams_parse_as_in_the_library(encoding: Encoding) -> None:
    library: Any = importlib.import_module("openai_harmony")
    rng = np.random.default_rng(5)
    texts = ["", "Hi.", "naïve 👍🏽\n\n", '{"a": [1]}', "x " * 20]
    for _ in range(100):
        reply: dict[str, Any] = {"role": "assistant", "reasoning": str(rng.choice(texts))}
        reply["content"] = str(rng.choice(texts))
        if rng.random() < 0.5:
            call = {"name": "f", "arguments": str(rng.choice(texts))}
            reply["tool_calls"] = [{"function": call}] * int(rng.integers(1, 3))
        ids = render_reply(encoding, reply)
        theirs = library.StreamableParser(encoding.library, library.Role.ASSISTANT)
        for id in ids:
            theirs.process(id)
        expected = [
            (m.channel, m.recipient, m.content_type and "json", m.content[0].text)
            for m in theirs.messages
        ]
        assert said(check(encoding, ids)) == expected


def fragments(encoding: Encoding) -> list[tuple[int, ...]]:
    """What malformed streams are mixed from."""
    texts = [
        *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"),
        *("<|return|>", "<|endoftext|>", "<|reserved_200013|>", "<|reserved_201087|>", "assistant"),
        *("analysis", "final", "commentary", " to=functions.f", " to=", "json", " code", "user"),
        *("<|channel|>analysis<|message|>", "<|end|><|start|>assistant", "<|channel|>final"),
        *("<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>",),
        *(
            "Hello",
            " world, this is text",
            "\n\n",
            " ",
            "{",
            '"a": 1}',
            "<",
            "|>",
            "<|",
            "é",
            "👍🏽",
        ),
        "several more words of an answer without header",
    ]
    parts = [tuple(encoding.encode_special(text)) for text in texts]
    ordinary = range(199998)
    cut = [id for id in ordinary if "\ufffd" in encoding.decode([id])]
    return [*parts, *((id,) for id in cut[:: len(cut) // 40]), (201088,), (10**6,), (-1,)]


@pytest.mark.slow
def test_hundred_thousand_malformed_streams_raise_nothing_and_lose_nothing(
    encoding: Encoding,
) -> None:
    rng = np.random.default_rng(2025)
    parts = fragments(encoding)
    lengths = rng.integers(1, 9, 100_000).tolist()
    choices = iter(rng.integers(0, len(parts), sum(lengths)).tolist())
    for length in lengths:
        ids = [id for _ in range(length) for id in parts[next(choices)]]
        check(encoding, ids)


@pytest.mark.parametrize("word", [" ", "<|channel|>", " to=a", "<|channel|>final", "\n", "x"])
def test_a_header_without_end_is_held_in_part_and_lost_in_none(
    encoding: Encoding, word: str
) -> None:
    ids = encoding.encode_special(word) * 20_000
    parser = Parser(encoding)
    pieces: list[Piece] = []
    for id in ids:
        pieces += parser.feed(id)
        assert len(parser._held) <= 512
    pieces += parser.finish()
    assert "".join(piece.text for piece in pieces) == encoding.decode(ids)
