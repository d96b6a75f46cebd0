"""Ids to events: stop strings wherever tokens part, and nothing lost otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.engine.writer import PlainText, Writer
from gptoss_mlx.harmony import Encoding, Parser, Piece
from gptoss_mlx.harmony.tokenizer import Decoder


class Script:
    """A source whose i-th token is the i-th list of pieces."""

    def __init__(self, tokens: Sequence[list[Piece]], rest: Sequence[Piece] = ()) -> None:
        self.tokens, self.rest = tokens, list(rest)

    def feed(self, id: int) -> list[Piece]:
        return self.tokens[id]

    def finish(self) -> list[Piece]:
        rest, self.rest = self.rest, []
        return rest


def piece(text: str, channel: str | None = "final", recipient: str | None = None) -> Piece:
    return Piece(text, channel, recipient, None, "content")


def header(text: str = "<|message|>", channel: str | None = "final") -> Piece:
    return Piece(text, channel, None, None, "header")


def write(
    tokens: Sequence[list[Piece]], stop: Sequence[str] = (), rest: Sequence[Piece] = ()
) -> tuple[list[TokenEvent], bool]:
    """All events as the engine takes them, and whether a stop string ended it."""
    writer = Writer(Script(tokens, rest), stop)
    events: list[TokenEvent] = []
    for id in range(len(tokens)):
        events += writer.push(id, None, ())
        if writer.stopped:
            break
    events += writer.finish()
    assert list(writer.finish()) == []
    return events, writer.stopped


def text_of(events: Iterable[TokenEvent]) -> str:
    return "".join(event.text + event.markup for event in events)


def of_texts(*texts: str) -> list[list[Piece]]:
    return [[piece(text)] for text in texts]


def test_without_stop_strings_pieces_pass_unchanged() -> None:
    tokens = [
        [],
        [header("<|channel|>analysis<|message|>", "analysis")],
        [piece("a", "analysis")],
        [header("<|end|>", "analysis"), piece("b", "commentary", "functions.f")],
    ]
    events, stopped = write(tokens, rest=[piece("c", None)])
    assert not stopped
    assert [(e.id, e.text + e.markup, e.channel, e.recipient, e.kind) for e in events] == [
        (0, "", None, None, "content"),
        (1, "<|channel|>analysis<|message|>", "analysis", None, "header"),
        (2, "a", "analysis", None, "content"),
        (3, "<|end|>", "analysis", None, "header"),
        (None, "b", "commentary", "functions.f", "content"),
        (None, "c", None, None, "content"),
    ]


def test_the_first_event_of_a_token_carries_its_probabilities() -> None:
    writer = Writer(Script([[header(), piece("x")], []]))
    first, second = writer.push(0, -0.5, ((3, -0.5), (4, -1.0)))
    assert (first.logprob, first.top_logprobs) == (-0.5, ((3, -0.5), (4, -1.0)))
    assert (second.id, second.logprob, second.top_logprobs) == (None, None, ())
    (only,) = writer.push(1, -2.0, ())
    assert (only.id, only.text, only.logprob) == (1, "", -2.0)


@pytest.mark.parametrize(
    ("texts", "stop", "shown"),
    [
        (["one STOP two"], ["STOP"], "one "),
        (["one S", "TO", "P two"], ["STOP"], "one "),
        (["one ", "S", "T", "O", "P"], ["STOP"], "one "),
        (["STOP"], ["STOP"], ""),
        (["aab"], ["ab"], "a"),
        (["a", "a", "b"], ["ab"], "a"),
        (["ababa", "bac"], ["abac"], "abab"),
        (["x\n", "\n", "y"], ["\n\n"], "x"),
        (["one two three"], ["three", "two"], "one "),
        (["a", "b", "c", "d"], ["abcd", "bc"], "a"),
        (["abcd"], ["abcd", "bc"], "a"),
        (["abcd"], ["bc", "abc"], ""),
        (["ab", "c"], ["abc", "abd", "b"], "a"),
        (["né", "e"], ["ée"], "n"),
        (["\U0001f600\U0001f601"], ["\U0001f601"], "\U0001f600"),
    ],
)
def test_text_ends_before_the_stop_string_that_is_complete_first(
    texts: list[str], stop: list[str], shown: str
) -> None:
    events, stopped = write(of_texts(*texts), stop)
    assert stopped
    assert text_of(events) == shown


@pytest.mark.parametrize(
    ("text", "stop", "named"),
    [("abcd", ["cd", "b"], "b"), ("abcd", ["bc", "abc"], "abc"), ("abcd", ["x", "d"], "d")],
)
def test_the_stop_string_that_ended_it_is_named(text: str, stop: list[str], named: str) -> None:
    writer = Writer(Script(of_texts(text)), stop)
    list(writer.push(0, None, ()))
    assert writer.stopped_by == named


def test_nothing_follows_a_stop_string() -> None:
    tokens = [[piece("a STOP b"), header("<|end|>"), piece("c")]]
    events, stopped = write(tokens, ["STOP"], rest=[piece("d")])
    assert stopped
    assert text_of(events) == "a "


def test_what_may_become_a_stop_string_is_held_no_longer_than_needed() -> None:
    writer = Writer(Script(of_texts("a S", "T", "x S", "TO", "p")), ["STOP"])
    shown = [text_of(writer.push(id, None, ())) for id in range(5)]
    assert shown == ["a ", "", "STx ", "", "STOp"]
    assert text_of(writer.finish()) == ""


def test_held_text_is_shown_at_the_end() -> None:
    events, stopped = write(of_texts("a STO"), ["STOP"])
    assert not stopped
    assert [(e.id, e.text + e.markup, e.channel) for e in events] == [
        (0, "a ", "final"),
        (None, "STO", "final"),
    ]


def test_held_text_comes_before_the_header_that_follows() -> None:
    tokens = [[piece("a ST", "commentary")], [header("<|end|>", "commentary")], [piece("OP")]]
    events, stopped = write(tokens, ["STOP"])
    assert not stopped
    assert [(e.id, e.text + e.markup, e.channel, e.kind) for e in events] == [
        (0, "a ", "commentary", "content"),
        (1, "ST", "commentary", "content"),
        (None, "<|end|>", "commentary", "header"),
        (2, "OP", "final", "content"),
    ]


@pytest.mark.parametrize(
    "other",
    [piece("a STOP b", "analysis"), piece("STOP", "commentary", "functions.f"), header("STOP")],
)
def test_only_text_for_the_user_can_stop(other: Piece) -> None:
    events, stopped = write([[other], [piece("c STOP")]], ["STOP"])
    assert stopped
    assert text_of(events) == other.text + "c "


@pytest.mark.parametrize("channel", ["final", "commentary", None])
def test_text_for_the_user_is_more_than_the_final_message(channel: str | None) -> None:
    events, stopped = write([[piece("a STOP", channel)]], ["STOP"])
    assert stopped
    assert text_of(events) == "a "


def test_a_stop_string_may_complete_at_the_very_end() -> None:
    events, stopped = write(of_texts("a ST"), ["STOP"], rest=[piece("OP b")])
    assert stopped
    assert text_of(events) == "a "


# Few letters, so that stop strings and their beginnings occur all the time.
TEXT = st.text("abé", max_size=24)
STOPS = st.lists(st.text("abé", min_size=1, max_size=4), max_size=3)
CUTS = st.lists(st.integers(0, 24), max_size=8)


def split(text: str, cuts: Iterable[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


def expected(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Letter by letter: at the first letter that completes a stop string, the longest counts."""
    for end in range(1, len(text) + 1):
        done = [s for s in stop if text[:end].endswith(s)]
        if done:
            return text[: end - max(map(len, done))], True
    return text, False


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=TEXT, cuts=CUTS, stop=STOPS)
def test_any_split_shows_the_same_text(text: str, cuts: list[int], stop: list[str]) -> None:
    events, stopped = write(of_texts(*split(text, cuts)), stop)
    assert (text_of(events), stopped) == expected(text, stop)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(before=TEXT, after=TEXT, cuts=CUTS, stop=st.text("xy", min_size=1, max_size=3))
def test_one_stop_string_shows_the_text_before_its_first_occurrence(
    before: str, after: str, cuts: list[int], stop: str
) -> None:
    events, stopped = write(of_texts(*split(before + stop + after, cuts)), [stop])
    assert stopped
    assert text_of(events) == before


class TestWithRealTokens:
    """Through the vocabulary: characters and stop strings that span tokens."""

    @pytest.fixture(scope="class")
    @staticmethod
    def encoding() -> Encoding:
        return Encoding()

    def plain(self, encoding: Encoding, ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
        source = PlainText(Decoder(encoding.token_bytes), frozenset({200002}))
        writer = Writer(source, stop)
        texts = []
        for id in ids:
            texts.append(text_of(writer.push(id, None, ())))
            if writer.stopped:
                return texts
        return [*texts, text_of(writer.finish())]

    def test_bytes_of_a_character_are_held_until_it_is_whole(self, encoding: Encoding) -> None:
        bytewise = [encoding.encode(chr(c))[0] for c in b"ab"]
        snow = next(
            ids for c in map(chr, range(0x1F600, 0x20000)) if len(ids := encoding.encode(c)) > 2
        )
        texts = self.plain(encoding, [bytewise[0], *snow, bytewise[1]])
        assert texts == ["a", *[""] * (len(snow) - 1), encoding.decode(snow), "b", ""]
        assert len(encoding.decode(snow)) == 1

    def test_an_incomplete_character_at_the_end_is_shown_as_such(self, encoding: Encoding) -> None:
        ids = encoding.encode("a\U0001fadc")
        assert self.plain(encoding, ids[:-1])[-1] == "\ufffd"
        assert self.plain(encoding, [*ids[:-1], 200002])[-1] == "\ufffd"

    def test_a_stop_token_has_no_text_and_other_specials_do(self, encoding: Encoding) -> None:
        assert self.plain(encoding, [200006, 64, 200002]) == ["<|start|>", "a", "", ""]

    def test_a_stop_string_of_characters_that_span_tokens(self, encoding: Encoding) -> None:
        ids = encoding.encode("so \U0001fadc\U0001fadc!")
        assert "".join(self.plain(encoding, ids, ["\U0001fadc!"])) == "so \U0001fadc"

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(text=st.text(max_size=30), stop=st.lists(st.text(min_size=1, max_size=2), max_size=2))
    def test_any_text_any_stop(self, encoding: Encoding, text: str, stop: list[str]) -> None:
        clean = text.encode(errors="replace").decode()
        stop = [s.encode(errors="replace").decode() for s in stop]
        shown = "".join(self.plain(encoding, encoding.encode(clean), stop))
        assert shown == expected(clean, stop)[0]

    def test_reasoning_passes_whole_and_the_answer_is_cut(self, encoding: Encoding) -> None:
        reply = (
            "<|channel|>analysis<|message|>say STOP now<|end|><|start|>assistant"
            "<|channel|>final<|message|>it is STOP here<|return|>"
        )
        writer = Writer(Parser(encoding), ["STOP"])
        events: list[TokenEvent] = []
        for id in encoding.encode_special(reply):
            events += writer.push(id, None, ())
            if writer.stopped:
                break
        events += writer.finish()
        shown = {
            channel: text_of(e for e in events if e.channel == channel and e.kind == "content")
            for channel in ("analysis", "final")
        }
        assert shown == {"analysis": "say STOP now", "final": "it is "}
        assert not writer.called

    @pytest.mark.parametrize(
        ("reply", "called"),
        [
            (" to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>", True),
            (" to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}", False),
            ("<|channel|>commentary<|message|>hm<|call|>", False),
            ("<|channel|>final<|message|>hm<|return|>", False),
        ],
    )
    def test_called_once_a_message_to_a_tool_has_ended(
        self, encoding: Encoding, reply: str, called: bool
    ) -> None:
        writer = Writer(Parser(encoding))
        for id in encoding.encode_special(reply):
            list(writer.push(id, None, ()))
        assert writer.called == called


@pytest.mark.parametrize("end", ["b", "c"])
def test_a_stop_string_of_any_length_costs_a_step_a_character(end: str) -> None:
    """Nearly all of the text may begin the string at every token."""
    begun = "a" * 100_000
    texts = ["a"] * 60_000 + ["a" * 80_000, end, "after"]
    events, stopped = write(of_texts(*texts), [begun + "b", "zz", begun + "a" * 70_000])
    assert stopped == (end == "b")
    assert text_of(events) == ("a" * 40_000 if stopped else "a" * 140_000 + "cafter")


def test_a_probability_that_is_no_number_is_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    writer = Writer(Script([[piece("x")], [piece("y")]]))
    (first,) = writer.push(0, nan, ((3, -0.5), (4, -inf), (5, nan)))
    assert (first.logprob, first.top_logprobs) == (None, ((3, -0.5),))
    (second,) = writer.push(1, -inf, ())
    assert second.logprob is None
