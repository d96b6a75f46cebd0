"""The engine's loop on a scripted model: order of steps, endings, cancelling, what is kept."""

from __future__ import annotations

from itertools import pairwise, zip_longest
from typing import Any

import pytest

from gptoss_mlx.engine.events import Event, FinishEvent, PrefillEvent, TokenEvent
from gptoss_mlx.errors import ContextError
from tests.support.scripted_model import (
    AGAIN,
    ANALYSIS,
    FINAL,
    TO_F,
    F,
    Scripted,
    encoding,
    finish_of,
    ids_of,
    text_of,
)

PROMPT = list(range(100, 140))


def run(scripted: Scripted, prompt: Any = PROMPT, **options: Any) -> list[Event]:
    return list(scripted.engine.stream(prompt, **options))


class TestPipeline:
    def test_each_step_is_queued_before_the_token_ahead_of_it_is_read(self) -> None:
        scripted = Scripted([64, 65, 66])
        run(scripted, [1, 2, 3], raw=True, max_tokens=3)
        assert scripted.log == [
            ("prefill", [1, 2]),
            ("decode", [3]),
            ("choose", 0),
            ("decode", [0]),
            ("read", 0),
            ("accept", 0),
            ("choose", 1),
            ("decode", [1]),
            ("read", 1),
            ("accept", 1),
            ("choose", 2),
            ("read", 2),
        ]

    def test_no_step_is_queued_behind_the_last_token(self) -> None:
        scripted = Scripted([64])
        run(scripted, [1], raw=True, max_tokens=1)
        assert scripted.log == [("decode", [1]), ("choose", 0), ("read", 0)]
        assert scripted.held() == [1]

    def test_at_a_stop_token_one_step_is_ahead_and_none_is_read_of_it(self) -> None:
        scripted = Scripted([64, 200002])
        run(scripted, [1], raw=True)
        assert scripted.log[-2:] == [("decode", [1]), ("read", 1)]
        assert scripted.held() == [1, 64, 200002]

    @pytest.mark.parametrize("constrained", [True, False])
    def test_each_token_is_chosen_once(self, constrained: bool) -> None:
        """Also where the mask changes: it is known by then, see test_constraint.py."""
        scripted = Scripted(FINAL + "one two three<|return|>")
        tokens = len(scripted.replies[0])
        run(scripted, constrain_headers=constrained)
        chosen = [what for kind, what in scripted.log if kind == "choose"]
        assert chosen == list(range(tokens))

    def test_the_token_is_given_out_before_the_step_after_next_is_queued(self) -> None:
        scripted = Scripted([64, 65, 66, 67])
        stream = scripted.engine.stream([1], raw=True)
        for event in stream:
            if isinstance(event, TokenEvent) and event.id == 65:
                break
        assert scripted.log[-3:] == [("read", 1), ("accept", 1), ("choose", 2)]
        assert scripted.count("decode") == 3


class TestPrefill:
    @pytest.mark.parametrize("length", [1, 2, 16, 17, 18, 33, 40])
    def test_progress_goes_chunk_by_chunk(self, length: int) -> None:
        scripted = Scripted([64], chunk=16)
        events = run(scripted, PROMPT[:length], raw=True, max_tokens=1)
        done = [e for e in events if isinstance(e, PrefillEvent)]
        assert done[0] == PrefillEvent(0, length, 0)
        assert [e.done for e in done] == [0, *range(16, length - 1, 16), length - 1][: len(done)]
        assert done[-1].done == length - 1
        assert {(e.total, e.reused) for e in done} == {(length, 0)}
        assert events[: len(done)] == done
        assert [len(ids) for kind, ids in scripted.log if kind == "prefill"] == [
            b.done - a.done for a, b in pairwise(done)
        ]
        assert finish_of(events).timings.prefill_tokens == length - 1

    def test_nothing_is_computed_before_the_first_event_is_asked_for(self) -> None:
        scripted = Scripted([64])
        stream = scripted.engine.stream(PROMPT)
        assert scripted.log == []
        stream.close()  # type: ignore[attr-defined]
        assert finish_of(run(scripted, max_tokens=1)).timings.reused_tokens == 0


class TestEndings:
    @pytest.mark.parametrize("stop", [200002, 200012, 199999])
    @pytest.mark.parametrize("raw", [False, True])
    def test_each_stop_id_stops(self, stop: int, raw: bool) -> None:
        scripted = Scripted([64, stop, 65])
        events = run(scripted, raw=raw, constrain_headers=False)
        assert ids_of(events) == [64, stop]
        assert finish_of(events).reason == "stop"
        assert finish_of(events).completion_tokens == 2

    @pytest.mark.parametrize("raw", [False, True])
    @pytest.mark.parametrize("id", [200007, 200006, 200008, 200003, 200005, 199998, 200018, 201087])
    def test_no_other_special_token_stops(self, id: int, raw: bool) -> None:
        scripted = Scripted([64, id, 65, 66])
        events = run(scripted, raw=raw, constrain_headers=False, max_tokens=4)
        assert ids_of(events) == [64, id, 65, 66]
        assert finish_of(events).reason == "length"

    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            (FINAL + "hi<|return|>", "stop"),
            (ANALYSIS + "hm" + AGAIN + FINAL + "hi<|return|>", "stop"),
            (TO_F + "{}<|call|>", "tool_calls"),
            (TO_F + "<|call|>", "tool_calls"),
            (TO_F + "{}" + AGAIN + TO_F + "{}<|call|>", "tool_calls"),
            (TO_F + "{}" + AGAIN + FINAL + "done<|return|>", "tool_calls"),
            ("<|channel|>commentary<|message|>nobody is called<|call|>", "stop"),
            (TO_F + "{}", "length"),
            (FINAL + "hi", "length"),
            ("<|channel|>", "length"),
        ],
    )
    def test_the_reason_says_how_it_ended(self, reply: str, reason: str) -> None:
        scripted = Scripted(reply)
        events = run(
            scripted, tools=[F], constrain_headers=False, max_tokens=len(scripted.replies[0])
        )
        assert finish_of(events).reason == reason

    def test_reason_and_calls_agree(self) -> None:
        for reply in (TO_F + "<|call|>", "<|channel|>commentary<|message|>hm<|call|>"):
            result = Scripted(reply).engine.generate(PROMPT, tools=[F], constrain_headers=False)
            assert (result.finish_reason == "tool_calls") == bool(result.tool_calls)

    def test_a_stop_token_as_the_last_allowed_one_is_a_stop(self) -> None:
        assert finish_of(run(Scripted([64, 200002]), raw=True, max_tokens=2)).reason == "stop"

    @pytest.mark.parametrize("limit", [1, 2, 7])
    def test_max_tokens(self, limit: int) -> None:
        events = run(Scripted([64] * 20), raw=True, max_tokens=limit)
        assert ids_of(events) == [64] * limit
        finish = finish_of(events)
        assert (finish.reason, finish.completion_tokens) == ("length", limit)
        assert (finish.prompt_tokens, finish.timings.decode_tokens) == (len(PROMPT), limit)

    @pytest.mark.parametrize("limit", [None, 5, 100])
    def test_the_context_is_filled_but_never_exceeded(self, limit: int | None) -> None:
        scripted = Scripted([64] * 20, context=45)
        events = run(scripted, raw=True, max_tokens=limit)
        assert len(ids_of(events)) == 5
        assert finish_of(events).reason == "length"
        assert len(scripted.held()) < 45

    @pytest.mark.parametrize(("length", "says"), [(10, "leaves no room"), (11, "holds 10")])
    def test_a_prompt_too_long_is_refused_at_the_call(self, length: int, says: str) -> None:
        scripted = Scripted([64], context=10)
        with pytest.raises(ContextError, match=f"^the prompt has {length} tokens.*10.*$") as raised:
            scripted.engine.stream(list(range(length)), raw=True)
        assert says in str(raised.value)
        assert scripted.log == []

    def test_text_ends_at_a_stop_string_wherever_it_begins(self) -> None:
        scripted = Scripted(
            ANALYSIS + "the END is near" + AGAIN + FINAL + "one two END three<|return|>"
        )
        events = run(scripted, stop="END")
        assert text_of(events) == "one two "
        assert text_of(events, "analysis") == "the END is near"
        assert (finish_of(events).reason, finish_of(events).stopped_by) == ("stop", "END")
        assert ids_of(events)[-1] != 200002

    def test_a_stop_token_is_no_stop_string(self) -> None:
        assert finish_of(run(Scripted(FINAL + "one<|return|>"), stop="END")).stopped_by is None

    def test_stop_strings_in_raw_mode(self) -> None:
        events = run(Scripted("one\n\ntwo"), raw=True, stop=["zzz", "\n\n"], max_tokens=3)
        assert text_of(events, None) == "one"


class TestCancel:
    @pytest.mark.parametrize("after", [0, 1, 5])
    def test_within_one_token(self, after: int) -> None:
        scripted = Scripted([64] * 20)
        seen: list[int] = []
        events = []
        for event in scripted.engine.stream([1], raw=True, cancel=lambda: len(seen) >= after):
            events.append(event)
            if isinstance(event, TokenEvent):
                seen.append(1)
        assert ids_of(events) == [64] * after
        finish = finish_of(events)
        assert (finish.reason, finish.completion_tokens) == ("cancelled", after)
        assert scripted.count("read") == after + 1

    @pytest.mark.parametrize("chunks", [1, 2, 3])
    def test_during_prefill_and_the_next_prompt_goes_on_from_there(self, chunks: int) -> None:
        scripted = Scripted([64], chunk=13)  # three chunks of a prompt of 40
        asked: list[int] = []

        def once() -> bool:
            asked.append(1)
            return len(asked) == chunks

        events = run(scripted, raw=True, cancel=once)
        assert ids_of(events) == []
        finish = finish_of(events)
        assert (finish.reason, finish.completion_tokens) == ("cancelled", 0)
        assert finish.timings.prefill_tokens == 13 * chunks
        assert scripted.held() == PROMPT[: 13 * chunks]
        again = finish_of(run(scripted, raw=True, max_tokens=1))
        assert again.timings.reused_tokens == 13 * chunks
        assert again.timings.prefill_tokens == 39 - 13 * chunks
        assert scripted.held() == PROMPT

    def test_text_held_for_a_stop_string_is_given_out(self) -> None:
        a, space_s, b = (encoding().encode(text)[0] for text in ("a", " S", "b"))
        scripted = Scripted([a, space_s, b, b, b])
        seen: list[TokenEvent] = []
        for event in scripted.engine.stream(
            [1], raw=True, stop=["STOP"], cancel=lambda: len(seen) == 2
        ):
            if isinstance(event, TokenEvent):
                seen.append(event)
        assert "".join(event.text for event in seen) == "a S"


def abandoned(scripted: Scripted, tokens: int, **options: Any) -> None:
    """Leave a stream after so many tokens."""
    stream = scripted.engine.stream(PROMPT, raw=True, **options)
    for _ in range(tokens):
        next(event for event in stream if isinstance(event, TokenEvent))
    stream.close()  # type: ignore[attr-defined]


class TestAfterwards:
    @pytest.mark.parametrize("tokens", [1, 2, 6])
    def test_a_closed_stream_leaves_all_it_read(self, tokens: int) -> None:
        scripted = Scripted(list(range(64, 80)), [64])
        abandoned(scripted, tokens)
        assert scripted.held() == PROMPT + list(range(64, 64 + tokens))
        longer = [*scripted.held(), 1, 2]
        timings = finish_of(run(scripted, longer, raw=True, max_tokens=1)).timings
        assert timings.reused_tokens == len(PROMPT) + tokens
        assert scripted.held() == longer

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
    @pytest.mark.parametrize(
        ("kind", "after"),
        [("prefill", 1), ("decode", 0), ("decode", 3), ("choose", 2), ("read", 2)],
    )
    def test_after_an_exception_in_a_step_the_next_stream_is_right(
        self, kind: str, after: int, error: BaseException
    ) -> None:
        scripted = Scripted([64] * 9, [64, 65], [66])
        run(scripted, raw=True, max_tokens=1)  # a session that could be reused
        scripted.replies.insert(0, [64] * 9)
        scripted.fail(kind, after, error)
        with pytest.raises(type(error)):
            run(scripted, [*PROMPT, *range(40)], raw=True)
        if kind == "prefill":
            scripted.replies.pop(0)
        events = run(scripted, raw=True, max_tokens=2)
        assert ids_of(events) == [64, 65]
        assert finish_of(events).timings.reused_tokens == 0
        assert scripted.held() == [*PROMPT, 64]

    def test_interleaved_streams_have_a_state_each(self) -> None:
        scripted = Scripted([64] * 5, [65] * 5, [66])
        first = scripted.engine.stream(PROMPT, raw=True, max_tokens=5)
        second = scripted.engine.stream(PROMPT[::-1], raw=True, max_tokens=5)
        got: tuple[list[Event], list[Event]] = ([], [])
        for both in zip_longest(first, second):  # prompts beside others come in smaller chunks
            for events, event in zip(got, both, strict=True):
                events += [event] if event is not None else []
        assert ids_of(got[0]) == [64] * 5
        assert ids_of(got[1]) == [65] * 5
        assert len(scripted.model.states) == 2
        assert scripted.held()[:40] in (PROMPT, PROMPT[::-1])

    def test_stats_tell_what_is_kept(self) -> None:
        scripted = Scripted([64, 65], window=8)
        assert scripted.engine.stats()["session_tokens"] == 0
        run(scripted, raw=True, max_tokens=2)
        stats = scripted.engine.stats()
        assert stats["session_tokens"] == stats["kv_bytes"] == len(PROMPT) + 1
        assert stats["snapshot_bytes"] == 2 * 8  # of the prompt's end and of the answer's
        assert stats["active_bytes"] == 1


def test_the_sampler_is_told_everything() -> None:
    scripted = Scripted([64], [64])
    run(scripted, raw=True, max_tokens=1, seed=7, temperature=0.5)
    events = run(scripted, raw=True, max_tokens=1)
    (options, seed, prompt), (_, drawn, _) = scripted.samplings
    assert (options.temperature, seed, prompt) == (0.5, 7, PROMPT)
    assert finish_of(events).seed == drawn != 7


def test_times_add_up() -> None:
    finish = finish_of(run(Scripted([64] * 5), raw=True, max_tokens=5))
    times = finish.timings
    assert 0 <= times.prefill <= times.first_token <= times.prefill + times.decode


def test_events_come_in_order() -> None:
    events = run(Scripted(FINAL + "hi<|return|>"))
    order = [(PrefillEvent, TokenEvent, FinishEvent).index(type(e)) for e in events]
    assert order == sorted(order)
    assert order.count(2) == 1
