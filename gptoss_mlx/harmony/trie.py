"""The trie of a vocabulary, as llguidance walks it to find the tokens that continue a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from llguidance import LLTokenizer


class _Vocabulary:
    """A vocabulary in the form that llguidance reads: one more token ends the text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], encode: Callable[[str], list[int]] | None) -> None:
        self.tokens = [*tokens, b"<end>"]
        self.eos_token_id = len(tokens)
        self.special_token_ids = [len(tokens)]
        self.encode = encode

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that is certain to come."""
        assert self.encode is not None
        return self.encode(text)


def token_trie(
    tokens: Sequence[bytes], encode: Callable[[str], list[int]] | None = None
) -> LLTokenizer:
    """The trie of the tokens that text is made of, by id from 0; those without bytes are no text.

    Its `eos_token`, the first id after them, stands for the end of the text. encode: the model's
    own tokens for a text; without it, the longest token comes first.
    """
    vocabulary = _Vocabulary(tokens, encode)
    trie = LLTokenizer(cast(Any, vocabulary))  # their type is a class that wraps another's
    vocabulary.tokens.clear()  # it has them all, and keeps the object
    if encode is None:
        vocabulary.encode = trie.greedy_tokenize
    return trie
