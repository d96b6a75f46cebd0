"""The o200k_harmony encoding, loaded offline from the package's own vocabulary.

Text is encoded by openai-harmony. Bytes of single tokens come from the vocabulary file itself,
whose line number is the token id, because the library decodes whole sequences only.
Nothing is loaded when this module is imported; one `Encoding` serves an engine.
"""

from __future__ import annotations

import base64
import importlib
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from llguidance import LLTokenizer

from gptoss_mlx.errors import ContextError, VocabularyError
from gptoss_mlx.files.regular import read_regular
from gptoss_mlx.harmony.merges import LONGEST_TOKEN, merge_long
from gptoss_mlx.harmony.trie import token_trie
from gptoss_mlx.harmony.words import pieces

DATA = Path(__file__).resolve().parent.parent / "data"
VOCABULARY = DATA / "o200k_base.tiktoken"
VOCABULARY_LIMIT = 8 << 20  # bytes; it has 3.6 million
VOCABULARY_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
ORDINARY_TOKENS = 199998
VOCAB_SIZE = 201088

RETURN = 200002
CONSTRAIN = 200003
CHANNEL = 200005
START = 200006
END = 200007
MESSAGE = 200008
CALL = 200012
ENDOFTEXT = 199999
ASSISTANT = 173781  # the roles' names, ordinary tokens
USER = 1428
ANALYSIS = 35644  # the channel's name
_SPECIAL = re.compile(r"<\|\w+\|>", re.ASCII)
_TOO_LONG = "the text has more tokens than there is room for"
STOP_IDS = frozenset({RETURN, CALL, ENDOFTEXT})

_NAMED = {
    199998: "<|startoftext|>",
    ENDOFTEXT: "<|endoftext|>",
    RETURN: "<|return|>",
    CONSTRAIN: "<|constrain|>",
    CHANNEL: "<|channel|>",
    START: "<|start|>",
    END: "<|end|>",
    MESSAGE: "<|message|>",
    CALL: "<|call|>",
}


def special_text(id: int) -> str:
    """The text of a special or reserved token; ids beyond the vocabulary get a text too."""
    named = _NAMED.get(id)
    if named is not None:
        return named
    return f"<|reserved_{id}|>" if ORDINARY_TOKENS <= id < VOCAB_SIZE else f"<|unknown_{id}|>"


def special_tokens() -> dict[str, int]:
    """Every special token of the released vocabulary by its text: ids 199998 to 201087."""
    return {special_text(id): id for id in range(ORDINARY_TOKENS, VOCAB_SIZE)}


def vocabulary_lines() -> list[bytes]:
    """The vocabulary file's lines: line i is the base64 of token i, a space, and i."""
    try:
        lines = read_regular(VOCABULARY, VOCABULARY_LIMIT).splitlines()
    except OSError as error:
        raise VocabularyError(f"{VOCABULARY}: cannot be read: {error.strerror}") from error
    if len(lines) != ORDINARY_TOKENS:
        raise VocabularyError(f"{VOCABULARY}: {len(lines)} tokens, expected {ORDINARY_TOKENS}")
    return lines


class Encoding:
    """o200k_harmony: text to token ids and back. Raises VocabularyError if it cannot be loaded."""

    def __init__(self) -> None:
        self.library: Any = _load_library()
        self._lines = vocabulary_lines()
        self._bytes: dict[int, bytes] = {}
        self._specials = special_tokens()

    def encode(self, text: str, most: float = math.inf) -> list[int]:
        """Ids of ordinary text; the text of special tokens is not interpreted.

        It takes time linear in the text's length, whatever the text is. Half of a surrogate pair
        becomes U+FFFD. Raises ContextError, and does so early, if there are more than `most` ids.
        """
        if len(text) > most * LONGEST_TOKEN:
            raise ContextError(_TOO_LONG)
        ids: list[int] = []
        for piece, is_word in pieces(with_whole_characters(text)):
            if is_word:
                ranks = self._ranks
                ids += [ranks[token] for token in merge_long(piece.encode(), ranks, most)]
            else:
                ids += self.library.encode(piece, disallowed_special=())
            if len(ids) > most:
                raise ContextError(_TOO_LONG)
        return ids

    def encode_special(self, text: str, most: float = math.inf) -> list[int]:
        """Ids of text in which the texts of special tokens stand for these tokens.

        Raises ContextError as `encode` does.
        """
        ids: list[int] = []
        begin = 0
        for match in _SPECIAL.finditer(text):
            id = self._specials.get(match.group())
            if id is not None:
                ids += self.encode(text[begin : match.start()], most - len(ids))
                ids.append(id)
                begin = match.end()
        return ids + self.encode(text[begin:], most - len(ids))

    @cached_property
    def _ranks(self) -> dict[bytes, int]:
        """Every ordinary token's id by its bytes, which is its rank, too."""
        return {self.token_bytes(id): id for id in range(ORDINARY_TOKENS)}

    @cached_property
    def trie(self) -> LLTokenizer:
        """The ordinary tokens, for grammars of text. It takes a second and 70 MB."""
        ordinary = [base64.b64decode(line.split(b" ", 1)[0]) for line in self._lines]
        return token_trie(ordinary, self.encode)

    def token_bytes(self, id: int) -> bytes:
        """The bytes one token stands for; they need not be whole characters."""
        known = self._bytes.get(id)
        if known is None:
            if 0 <= id < ORDINARY_TOKENS:
                known = base64.b64decode(self._lines[id].split(b" ", 1)[0])
            else:
                known = special_text(id).encode()
            self._bytes[id] = known
        return known

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of a sequence, special tokens as their texts."""
        return b"".join([self.token_bytes(id) for id in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def with_whole_characters(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which UTF-8 does not have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _load_library() -> Any:
    harmony = importlib.import_module("openai_harmony")
    with _environment("TIKTOKEN_ENCODINGS_BASE", str(DATA)):
        try:
            return harmony.load_harmony_encoding("HarmonyGptOss")
        except Exception as error:
            raise VocabularyError(f"{VOCABULARY}: cannot load the vocabulary: {error}") from error


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
