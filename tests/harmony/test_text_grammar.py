"""Grammars of text: masks against every completion of a small language, texts against schemas."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.errors import GrammarError
from gptoss_mlx.harmony import Encoding, HeaderState, Mask
from gptoss_mlx.harmony.compiler import KEPT, Compiler
from gptoss_mlx.harmony.encoding import RETURN, VOCAB_SIZE
from gptoss_mlx.harmony.trie import token_trie
from tests.support.sampling_oracle import flags
from tests.support.schemas import SCHEMAS, walk

FREE = HeaderState(Mask(ban=()))


@pytest.fixture(scope="module")
def compiler(encoding: Encoding) -> Compiler:
    return Compiler(lambda: encoding.trie, VOCAB_SIZE)


BYTES = [bytes([byte]) for word in "abxé" for byte in word.encode()]
WORDS = st.text("abxé", max_size=5)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    words=st.sets(WORDS, min_size=1, max_size=6),
    longer=st.lists(WORDS.filter(bool).map(str.encode), max_size=8),
    beyond=st.integers(-2, 9),
    seed=st.integers(0, 9),
)
def test_a_mask_permits_what_some_completion_begins_with(
    words: set[str], longer: list[bytes], beyond: int, seed: int
) -> None:
    """Of a text that is certain the model's own tokens are enough: one that all others begin with.

    beyond: logits more than there are tokens.
    """
    tokens = [b"", *longer, *BYTES, b"\xa9x"]
    end, vocab = len(tokens) + beyond, len(tokens) + beyond + 1
    one_of = f"({'|'.join(map(re.escape, sorted(words)))})"
    compiled = Compiler(lambda: token_trie(tokens), vocab).regex(one_of)
    language = {word.encode() for word in words}
    state: Any = compiled.start((end,), FREE)
    text, rng = b"", np.random.default_rng(seed)
    while True:
        rest = [word[len(text) :] for word in language if word.startswith(text)]
        expected = {
            id
            for id, token in enumerate(tokens)
            if id < vocab and id != end and token and any(word.startswith(token) for word in rest)
        } | {end for word in rest if not word}
        if not expected:
            with pytest.raises(GrammarError, match="regex: no token of the model's vocabulary"):
                _ = state.mask
            return
        found = {*np.flatnonzero(flags(state.mask, vocab)).tolist()}
        if found != expected:
            (one,) = found
            assert one in expected
            assert all(word.startswith(tokens[one]) for word in rest)
        id = int(rng.choice(sorted(found)))
        if id == end:
            assert text in language
            return
        text += tokens[id]
        state = state.advance(id)


def test_texts_satisfy_their_schema_and_cut_ones_can_be_completed(
    compiler: Compiler, encoding: Encoding
) -> None:
    written: list[str] = []

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(schema=SCHEMAS, seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 40))
    def check(schema: dict[str, Any], seed: int, cut: int) -> None:
        try:
            grammar = compiler.schema(schema, "response_format")
        except GrammarError:  # such as a number in a range that has none
            return
        rng = np.random.default_rng(seed)
        ids, state = walk(grammar.start((RETURN,), FREE), rng, cut, VOCAB_SIZE, close=0.3)
        if ids[-1] != RETURN:
            more, state = walk(state, rng, 600, VOCAB_SIZE, close=0.97)
            ids += more
        assert ids[-1] == RETURN
        text = encoding.decode(ids[:-1])
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        written.append(text)

    check()
    assert len(written) > 120
    assert len({*written}) > 60


def test_a_mask_that_stays_is_the_same_object(compiler: Compiler, encoding: Encoding) -> None:
    state: Any = compiler.schema({"type": "string"}, "x").start((RETURN,), FREE)
    masks = []
    for id in encoding.encode('"the quick brown fox jumps over the lazy dog'):
        state = state.advance(id)
        masks.append(state.mask)
    assert all(mask is masks[-1] for mask in masks[1:])
    assert masks[-1].bits is not None


def test_a_state_never_changes(compiler: Compiler, encoding: Encoding) -> None:
    start: Any = compiler.regex("[ab]{3}c").start((RETURN,), FREE)
    a, b = encoding.encode("a") + encoding.encode("b")
    one, other = start.advance(a), start.advance(b)
    before = one.mask
    assert start.advance(a).mask == before == other.mask
    for id in (a, b):
        one = one.advance(id)
    assert one.mask == Mask(allow=tuple(encoding.encode("c")))
    assert start.advance(a).mask == before


def test_the_end_comes_only_where_the_text_may_end(compiler: Compiler, encoding: Encoding) -> None:
    state: Any = compiler.schema({"type": "object"}, "x").start((RETURN,), FREE)
    for id in encoding.encode('{"a": 1'):
        assert not flags(state.mask, VOCAB_SIZE)[199998:].any()
        state = state.advance(id)
    done = state.advance(encoding.encode("}")[0])
    assert done.mask == Mask(allow=(RETURN,))


def test_a_token_that_is_not_permitted_leaves_the_text(compiler: Compiler) -> None:
    state: Any = compiler.regex("[0-9]+").start((RETURN,), FREE)
    assert state.advance(RETURN) is FREE
    assert state.advance(64) is FREE


@pytest.mark.parametrize("name", ["a", "\\u0061"])
def test_a_name_has_one_spelling(compiler: Compiler, encoding: Encoding, name: str) -> None:
    """Else an additional property could take the place of one that has a schema."""
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    for grammar in (
        compiler.schema(schema, "x"),
        compiler.lark(f"start: %json {json.dumps(schema)}"),
    ):
        state: Any = grammar.start((RETURN,), FREE)
        for id in encoding.encode('{"a":1'):
            state = state.advance(id)
        again: Any = state
        for byte in f', "{name}"'.encode():
            (id,) = encoding.encode(chr(byte))
            again = again.advance(id)
        assert again is FREE


def test_blanks_are_bounded(compiler: Compiler, encoding: Encoding) -> None:
    state: Any = compiler.schema({"type": "array"}, "x").start((RETURN,), FREE)
    state = state.advance(encoding.encode("[")[0])
    for _ in range(64):
        state = state.advance(encoding.encode("\n")[0])
    assert state is not FREE
    assert state.advance(encoding.encode("\n")[0]) is FREE


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("regex", "a(b", "regex: .*unclosed group"),
        ("regex", "(?=a)b", "regex: .*look-around"),
        ("regex", "[^\\s\\S]", "regex: "),
        ("regex", "", "regex: must be a text, and not empty"),
        ("regex", 7, "regex: must be a text"),
        ("regex", "a" * 100_001, "regex: has more than 100000 characters"),
        ("lark", "start: foo", 'grammar: .*unknown name: "foo"'),
        ("lark", 'start: "a', "grammar: .*lexer error"),
        ("lark", "start: <|call|>", "grammar: .*unknown special token"),
        ("lark", "start: start", "grammar: no text satisfies it"),
        ("lark", 'start[temperature=0.5]: "a"', "the option temperature of a rule"),
        ("lark", 'start: a "b"\na[stop="b"]: /.*/', "the option stop of a rule"),
        ("lark", "start: A\nA: " + " & ".join(["/.*/"] * 12), "more than 8 of & and ~"),
        ("lark", 'start: %json {"not": {}}', 'grammar: %json: "not" at # is not supported'),
    ],
)
def test_a_bad_grammar_is_one_line(compiler: Compiler, kind: str, text: Any, says: str) -> None:
    with pytest.raises(GrammarError, match=says) as raised:
        getattr(compiler, kind)(text)
    assert str(raised.value).isascii()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_grammar_is_kept(compiler: Compiler) -> None:
    assert compiler.regex("kept") is compiler.regex("kept")
    assert compiler.regex("kept") is not compiler.regex("kept", "another")


def test_what_is_kept_compiled_is_bounded(compiler: Compiler) -> None:
    first = compiler.schema({"const": "first"}, "schema")
    assert compiler.schema({"const": "first"}, "schema") is first
    for number in range(KEPT // 5000 + 1):
        compiler.schema({"const": f"{number} {'x' * 5000}"}, "schema")
    assert compiler.schema({"const": "first"}, "schema") is not first


@pytest.mark.parametrize(
    "schema",
    [
        {"const": "\ud800"},
        {"properties": {"\udfff": {}}},
        {"pattern": "\ud800"},
        {"enum": ["\udc00"]},
    ],
)
def test_half_a_character_is_refused(compiler: Compiler, schema: dict[str, Any]) -> None:
    with pytest.raises(GrammarError, match="answer: has half a character"):
        compiler.schema(schema, "answer")
    for grammar in ('start: "\ud800"', 'start: %json {"const": "\\ud800"}'):
        with pytest.raises(GrammarError, match="has half a character"):
            compiler.lark(grammar)
    with pytest.raises(GrammarError, match="has half a character"):
        compiler.regex("\ud800")
