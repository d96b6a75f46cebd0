"""Several streams that share the model's steps: each as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.engine.events import Event, FinishEvent, PrefillEvent, TokenEvent
from gptoss_mlx.errors import ContextError
from tests.support.ring_model import RingState
from tests.support.scripted_model import FINAL, Scripted, finish_of, ids_of

PROMPT = list(range(1, 41))
RAW: dict[str, Any] = {"raw": True, "max_tokens": 20}


def many(scripted: Scripted, prompts: list[Any], **options: Any) -> list[list[Event]]:
    found: list[list[Event]] = [[] for _ in prompts]
    for i, event in scripted.engine.stream_many(prompts, **options):
        found[i].append(event)
    return found


def replies(lengths: list[int]) -> list[list[int]]:
    """Of each stream its own token, then the end of the text."""
    return [[64 + i] * length + [199999] for i, length in enumerate(lengths)]


def kinds(events: list[Event]) -> list[type[Event]]:
    """Without the chunks of the prompt, which are smaller beside streams that decode."""
    return [type(event) for event in events if not isinstance(event, PrefillEvent)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), min_size=1, max_size=9),
    st.integers(1, 5),
)
def test_each_stream_is_as_if_alone(streams: list[tuple[int, int]], rows: int) -> None:
    prompts = [[100 + i] * length for i, (length, _) in enumerate(streams)]
    spoken = replies([said for _, said in streams])
    scripted = Scripted(*spoken)
    scripted.model.rows = rows
    found = many(scripted, prompts, **RAW)
    for prompt, said, events in zip(prompts, spoken, found, strict=True):
        alone = list(Scripted(said).engine.stream(prompt, **RAW))
        assert ids_of(events) == ids_of(alone) == said
        assert kinds(events) == kinds(alone)
        assert finish_of(events).reason == "stop"
        assert finish_of(events).prompt_tokens == len(prompt)
    # A step for each token and one more, shared as far as there are rows and streams.
    assert sum(scripted.model.together) == sum(len(said) + 1 for said in spoken)
    assert max(scripted.model.together) <= rows


def test_one_that_ends_makes_room_for_the_next() -> None:
    scripted = Scripted(*replies([2, 9, 2, 2]))
    scripted.model.rows = 2
    begun: list[int] = []
    ended: list[int] = []
    for i, event in scripted.engine.stream_many([[i + 1] for i in range(4)], **RAW):
        if isinstance(event, PrefillEvent) and i not in begun:
            begun.append(i)
            assert len(begun) - len(ended) <= 2
        if isinstance(event, FinishEvent):
            ended.append(i)
    assert begun == [0, 1, 2, 3]
    assert ended == [0, 2, 1, 3]
    assert set(scripted.model.together) == {1, 2}


def test_sessions_are_given_up_but_for_as_many_as_there_are_rows() -> None:
    scripted = Scripted(*replies([3, 3, 3]), [7, 199999])
    scripted.model.rows = 2
    many(scripted, [[1, 2], [3, 4], [5, 6]], **RAW)
    closed = [state for state in scripted.model.states if ("close", state.offset) in state.moves]
    assert len(scripted.model.states) == 3
    assert len(closed) == 1
    assert len(scripted.engine._loop.idle.sessions) == 2
    assert all(s.state not in closed for s in scripted.engine._loop.idle.sessions)
    events = list(scripted.engine.stream([9], **RAW))
    assert ids_of(events) == [7, 199999]


def test_a_conversation_goes_on_side_by_side_with_others() -> None:
    scripted = Scripted([64, 199999], [65, 199999], [66, 199999])
    list(scripted.engine.stream(PROMPT, **RAW))
    events = many(scripted, [[*PROMPT, 64, 5], [8]], **RAW)
    assert finish_of(events[0]).timings.reused_tokens == len(PROMPT) + 1
    assert finish_of(events[1]).timings.reused_tokens == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
@pytest.mark.parametrize(("kind", "after"), [("prefill", 2), ("decode", 4), ("choose", 3)])
def test_after_an_exception_the_next_streams_are_right(
    kind: str, after: int, error: BaseException
) -> None:
    scripted = Scripted(*replies([5, 5, 5]))
    scripted.fail(kind, after, error)
    with pytest.raises(type(error)):
        many(scripted, [PROMPT, PROMPT[:9], [7]], **RAW)
    scripted.replies[:] = replies([4, 6])
    found = many(scripted, [PROMPT, [3]], **RAW)
    assert [ids_of(events) for events in found] == replies([4, 6])
    scripted.held()


@pytest.mark.parametrize("after", [1, 4, 7, 12])
def test_left_early_they_spoil_nothing(after: int) -> None:
    scripted = Scripted(*replies([9, 9, 9]))
    stream: Iterator[tuple[int, Event]] = scripted.engine.stream_many([[1], [2], [3]], **RAW)
    for _ in range(after):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert _open(scripted) <= scripted.model.rows
    scripted.replies[:] = [[70, 199999]]
    assert ids_of(list(scripted.engine.stream([1, 64], **RAW))) == [70, 199999]
    scripted.held()


def _open(scripted: Scripted) -> int:
    def is_open(state: RingState) -> bool:
        return all(move != "close" for move, _ in state.moves)

    return len([state for state in scripted.model.states if is_open(state)])


def test_a_prompt_that_cannot_be_taken_is_refused_before_any_is_read() -> None:
    scripted = Scripted(*replies([1, 1]), context=30)
    with pytest.raises(ContextError, match="40 tokens"):
        scripted.engine.stream_many([[1], PROMPT], **RAW)
    assert scripted.log == []


def test_collected_in_the_prompts_order() -> None:
    scripted = Scripted(FINAL + "one, slowly<|return|>", FINAL + "two<|return|>")
    results = scripted.engine.generate_many(["a", "b"])
    assert [result.text for result in results] == ["one, slowly", "two"]


def test_no_prompts_no_events() -> None:
    assert list(Scripted().engine.stream_many([])) == []


def test_cancelled_together() -> None:
    scripted = Scripted(*replies([9, 9]))
    seen: list[Event] = []
    for _, event in scripted.engine.stream_many([[1], [2]], cancel=lambda: len(seen) > 3, **RAW):
        if isinstance(event, TokenEvent):
            seen.append(event)
        if isinstance(event, FinishEvent):
            assert event.reason == "cancelled"
    assert len(seen) in (4, 5)  # one token more at most, of the other stream
