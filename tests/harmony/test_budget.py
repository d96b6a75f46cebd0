"""The reasoning budget: wherever it ends, the analysis is closed and none follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gptoss_mlx.harmony import Encoding, Headers, Mask
from gptoss_mlx.harmony.budget import with_budget
from gptoss_mlx.harmony.encoding import ASSISTANT, CHANNEL, END, MESSAGE, START
from gptoss_mlx.harmony.header import Header
from tests.support.sampling_oracle import permits

ANALYSIS = (CHANNEL, 35644, MESSAGE)
FINAL = (CHANNEL, 17196, MESSAGE)
AGAIN = (END, START, ASSISTANT)


def begun(encoding: Encoding, tokens: int, **options: Any) -> Any:
    begin = Headers(encoding, **options).start()
    return with_budget(begin, Headers(encoding, reasoning=False, **options).start(), tokens)


def after(state: Any, ids: Sequence[int]) -> Any:
    """The state after tokens, each of which must be permitted."""
    for id in ids:
        assert permits(state.mask, id), id
        state = state.advance(id)
    return state


def assert_no_more_analysis(state: Any) -> None:
    channel = after(state, [CHANNEL])
    assert not permits(channel.mask, ANALYSIS[1])
    answer = after(channel, [*FINAL[1:], 5])
    assert after(answer, [6, 7]).mask is answer.mask


@pytest.mark.parametrize("budget", range(6))
@pytest.mark.parametrize("first", range(6))
def test_analysis_is_closed_when_the_budget_is_spent(
    encoding: Encoding, budget: int, first: int
) -> None:
    """In one message, or in two: the first of them ended by the model itself."""
    state = begun(encoding, budget)
    used = 0
    if 0 < first < budget:
        state = after(state, [*ANALYSIS, *[64] * first, *AGAIN])
        used = first
    if budget:
        state = after(state, ANALYSIS)
        free = state.mask
        for _ in range(budget - used - 1):
            state = after(state, [64])
            assert state.mask is free  # nothing waits for a mask
        state = after(state, [64])
        assert state.mask == Mask(allow=(END,))
        state = after(state, AGAIN)
    assert_no_more_analysis(state)


def test_a_budget_spent_with_the_models_own_end(encoding: Encoding) -> None:
    state = after(begun(encoding, 2), [*ANALYSIS, 64, 64])
    assert_no_more_analysis(after(state, AGAIN))


def test_a_budget_counts_no_headers_and_no_other_messages(encoding: Encoding) -> None:
    state = begun(encoding, 2, tools=["f"], builtin=["python"])
    preamble = encoding.encode_special("<|channel|>commentary<|message|>")
    state = after(state, [*preamble, *[64] * 9, *AGAIN])
    state = after(state, [*ANALYSIS, 64, *AGAIN, CHANNEL])
    assert permits(state.mask, ANALYSIS[1])
    state = after(state, [*ANALYSIS[1:], 64])
    assert state.mask == Mask(allow=(END,))


def test_calls_of_builtin_tools_are_no_analysis(encoding: Encoding) -> None:
    state = begun(encoding, 0, builtin=["python"])
    header = encoding.encode_special("<|channel|>analysis to=python code<|message|>")
    state = after(state, [*header, *[64] * 9])
    assert state.header == Header("analysis", "python", "code")


def test_a_token_that_is_not_permitted_spends_no_more_than_there_is(encoding: Encoding) -> None:
    state = after(begun(encoding, 1), [*ANALYSIS, 64])
    for _ in range(3):
        state = state.advance(64)  # as a sampler might that knows no masks
        assert state.mask == Mask(allow=(END,))
    assert_no_more_analysis(after(state, AGAIN))
