"""Token counts and times of an answer, as OpenAI's APIs and llama.cpp's clients read them."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import TypedDict

from gptoss_mlx.engine.events import FinishEvent, Timings


class PromptDetails(TypedDict):
    cached_tokens: int


class CompletionDetails(TypedDict):
    reasoning_tokens: int


class Usage(TypedDict):
    """In tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TimesShown(TypedDict):
    """Milliseconds, tokens and tokens a second, under llama.cpp's names."""

    prompt_n: int
    cache_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


def usage_of(finishes: Sequence[FinishEvent], reasoning_tokens: int, prompts: int = 1) -> Usage:
    """The sum over all choices; a prompt, which several share, counts once.

    prompts: how many they answer, in order, each as often.
    """
    firsts = finishes[:: max(1, len(finishes) // prompts)]
    prompt = sum(end.prompt_tokens for end in firsts)
    cached = sum(end.timings.reused_tokens for end in firsts)
    completion = sum(end.completion_tokens for end in finishes)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def times_of(timings: Timings) -> TimesShown:
    return {
        "prompt_n": timings.prefill_tokens,
        "cache_n": timings.reused_tokens,
        "prompt_ms": 1e3 * timings.prefill,
        "prompt_per_second": timings.prefill_rate,
        "predicted_n": timings.decode_tokens,
        "predicted_ms": 1e3 * timings.decode,
        "predicted_per_second": timings.decode_rate,
    }
