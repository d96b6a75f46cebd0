"""Text in pieces against the library's encoding of it whole, wherever the library can."""

from __future__ import annotations

import random
import re
import time
from unicodedata import category

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptoss_mlx.errors import ContextError
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.harmony import words as module
from gptoss_mlx.harmony.encoding import special_tokens
from gptoss_mlx.harmony.merges import LONGEST_TOKEN, merge, merge_long
from gptoss_mlx.harmony.words import LONG, PIECE, pieces

# Every property that the pattern tells apart, and what is special in it.
LETTERS = (
    "aAsTvVeErRmMdDlL zZ  '\u2019//\r\n\n\t\v\x1c\x85\xa0\u2028\u3000\u017fǅʰªñÑ中文ךา\u0301\u0903"
)
LETTERS += "0123٣²Ⅷ.,-<|>=_\0\ud7ff\u0378\ue000😀👍🏽"


def whole(encoding: Encoding, text: str) -> list[int]:
    ids: list[int] = encoding.library.encode(text, disallowed_special=())
    return ids


def test_a_character_of_every_property_is_known() -> None:
    groups = {category(letter)[0] for letter in LETTERS}
    assert groups == set("LMNPSZC")


class TestAgainstTheLibrary:
    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(
        text=st.text(st.sampled_from(LETTERS), max_size=60),
        long=st.integers(1, 12),
        piece=st.integers(1, 30),
    )
    @example(text=" \t0", long=1, piece=2)  # blanks, of which the last is left and not taken
    def test_pieces_of_any_size_give_the_same_ids(
        self, encoding: Encoding, text: str, long: int, piece: int
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "PIECE", piece)
            patch.setattr(module, "LONG", long)
            pattern = rf"(?s:.){{1,{long}}}(?:{module._JOINT}|\Z)"
            patch.setattr(module, "_SHORT_WORDS", re.compile(pattern))
            parts = [part for part, _ in pieces(text)]
        assert "".join(parts) == text
        assert [id for part in parts for id in whole(encoding, part)] == whole(encoding, text)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.text(max_size=40))
    def test_words_of_all_of_unicode_are_found(self, encoding: Encoding, text: str) -> None:
        text = text.encode(errors="replace").decode()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "LONG", 1)
            patch.setattr(module, "PIECE", 1)
            parts = [part for part, _ in module._word_by_word(text)]
        assert "".join(parts) == text
        assert [id for part in parts for id in whole(encoding, part)] == whole(encoding, text)

    @pytest.mark.parametrize("letter", LETTERS)
    def test_long_words_of_one_character(self, encoding: Encoding, letter: str) -> None:
        for text in (letter * 700, "x" + letter * 600 + "y", " " + letter * 601 + "\n \n"):
            assert encoding.encode(text) == whole(encoding, text)

    @pytest.mark.parametrize("seed", range(6))
    def test_long_words_of_many(self, encoding: Encoding, seed: int) -> None:
        rng = random.Random(seed)
        for letters in ("ab", "aA", "中文字 ", "thequickbrown", "😀👍", " \n", ".-=", LETTERS):
            text = "".join(rng.choices(letters, k=rng.randrange(600, 1500)))
            assert encoding.encode(text) == whole(encoding, text)

    def test_special_texts_stand_for_tokens_or_do_not(self, encoding: Encoding) -> None:
        names = [*special_tokens(), "<|none|>", "<|start", "|>", "<|<|end|>", "<|reserved_1|>"]
        text = "a".join(names)
        allowed = special_tokens().keys()
        expected = encoding.library.encode(text, allowed_special=allowed, disallowed_special=())
        assert encoding.encode_special(text) == expected
        assert encoding.encode(text) == whole(encoding, text)


class TestMerging:
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.text(st.sampled_from("abc中😀\u017fñ"), min_size=1, max_size=80))
    def test_a_word_is_merged_as_the_library_does(self, encoding: Encoding, text: str) -> None:
        ranks, word = encoding._ranks, text.encode()
        if word in ranks:  # the library does not merge what is one token
            return
        assert [ranks[token] for token in merge(word, ranks)] == whole(encoding, text)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(
        word=st.binary(min_size=1, max_size=120) | st.text("aeht in", min_size=9).map(str.encode),
        window=st.integers(2, 40),
        margin=st.integers(0, 20),
    )
    def test_windows_of_any_size_give_the_same_tokens(
        self, encoding: Encoding, word: bytes, window: int, margin: int
    ) -> None:
        tokens = merge_long(word, encoding._ranks, window=window, margin=margin)
        assert tokens == merge(word, encoding._ranks)

    def test_no_token_is_longer_than_its_limit(self, encoding: Encoding) -> None:
        assert max(map(len, encoding._ranks)) == LONGEST_TOKEN


class TestAnyText:
    """What panics in the library or takes it hours."""

    @pytest.mark.parametrize("letter", ["a", "7", " ", "\n", "\u0301", "中", "=", "\0"])
    def test_many_times_one_character(self, encoding: Encoding, letter: str) -> None:
        few, many = encoding.encode(letter * 3000), encoding.encode(letter * 60_000)
        assert encoding.decode(many) == letter * 60_000
        assert len(many) == pytest.approx(20 * len(few), rel=0.05)

    def test_pieces_are_bounded(self) -> None:
        text = ("some words, 中文字符没有空格 " * 20 + "中文\uff0c" * 9000 + "x" * 999 + "\n") * 3
        parts = list(pieces(text))
        assert "".join(part for part, _ in parts) == text
        assert max(len(part) for part, is_word in parts if not is_word) < PIECE + LONG
        assert [part for part, is_word in parts if is_word] == ["\uff0c" + "x" * 999] * 3

    @pytest.mark.parametrize("text", ["word " * 2_000_000, "ab" * 500_000, "\U0001f600" * 300_000])
    def test_more_than_there_is_room_for_is_refused_early(
        self, encoding: Encoding, text: str
    ) -> None:
        start = time.process_time()
        with pytest.raises(ContextError, match="more tokens than there is room for"):
            encoding.encode(text, 4096)
        assert time.process_time() - start < 2

    def test_as_many_as_there_is_room_for_are_not(self, encoding: Encoding) -> None:
        ids = encoding.encode("word " * 500 + "y" * 900)
        assert encoding.encode("word " * 500 + "y" * 900, len(ids)) == ids
        with pytest.raises(ContextError):
            encoding.encode("word " * 500 + "y" * 900, len(ids) - 1)
        assert encoding.encode("", 0) == []
