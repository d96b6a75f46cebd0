"""Log-probabilities of tokens, as most APIs have them."""

from __future__ import annotations

from collections.abc import Iterable

from typing_extensions import TypedDict

from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.harmony.tokenizer import Tokenizer

LEAST = -9999.0
"""Stands for a probability of nothing, which JSON has no number for."""


class Probable(TypedDict):
    """bytes: of the token's text, which alone need not be valid UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class Chosen(Probable):
    top_logprobs: list[Probable]


class Logprobs(TypedDict):
    content: list[Chosen]
    refusal: None


def logprobs_of(tokens: Iterable[TokenEvent], tokenizer: Tokenizer) -> Logprobs:
    return {"content": [chosen(token, tokenizer) for token in tokens], "refusal": None}


def chosen(token: TokenEvent, tokenizer: Tokenizer) -> Chosen:
    """A token that was chosen; it has an id."""
    assert token.id is not None
    others = [_probable(id, logprob, tokenizer) for id, logprob in token.top_logprobs]
    return {**_probable(token.id, token.logprob, tokenizer), "top_logprobs": others}


def _probable(id: int, logprob: float | None, tokenizer: Tokenizer) -> Probable:
    data = tokenizer.token_bytes(id)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": LEAST if logprob is None else logprob,
        "bytes": list(data),
    }
