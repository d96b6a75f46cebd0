"""What ends an answer that does not end itself, and how the last event says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gptoss_mlx.engine.events import Event, PrefillEvent
from gptoss_mlx.engine.repetition import LENGTH, PERIOD
from gptoss_mlx.errors import SamplingError
from tests.support.scripted_model import FINAL, Scripted, encoding, finish_of, ids_of

PROMPT = list(range(100, 140))


def ending(events: list[Event]) -> tuple[str, str | None]:
    finish = finish_of(events)
    return finish.reason, finish.limit


def run(scripted: Scripted, **options: Any) -> list[Event]:
    return list(scripted.engine.stream(PROMPT, **options))


@pytest.mark.parametrize(
    ("max_tokens", "limit"), [(None, "context"), (9, "context"), (8, "max_tokens")]
)
def test_which_limit_cut_the_answer(max_tokens: int | None, limit: str) -> None:
    events = run(Scripted(range(64, 90), context=48), raw=True, max_tokens=max_tokens)
    assert len(ids_of(events)) == 8
    assert ending(events) == ("length", limit)


def test_an_answer_that_ended_itself_met_no_limit() -> None:
    result = Scripted(FINAL + "hi<|return|>").engine.generate("hi", max_tokens=50, max_time=1000)
    assert (result.finish_reason, result.limit) == ("stop", None)
    cancelled = run(Scripted([64] * 9), raw=True, cancel=lambda: True)
    assert ending(cancelled) == ("cancelled", None)


class TestMaxTime:
    """Each look at the clock is a second later than the one before."""

    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def seconds() -> Iterator[float]:
            yield from map(float, range(10_000))

        monkeypatch.setattr("gptoss_mlx.engine.clock.perf_counter", seconds().__next__)

    def test_ends_the_answer_within_one_token(self) -> None:
        lengths = []
        for limit in (10, 20, 40):
            scripted = Scripted(range(64, 128))
            events = run(scripted, raw=True, max_time=limit)
            assert ending(events) == ("length", "max_time")
            lengths.append(len(ids_of(events)))
            assert scripted.held() == PROMPT + ids_of(events)
        # Two looks a token.
        assert (lengths[1] - lengths[0], lengths[2] - lengths[1]) == (5, 10)

    def test_ends_the_reading_of_the_prompt_within_one_chunk(self) -> None:
        scripted = Scripted([64], [64], chunk=13)
        events = run(scripted, raw=True, max_time=0.5)
        assert ending(events) == ("length", "max_time")
        assert [e.done for e in events if isinstance(e, PrefillEvent)] == [0, 13]
        assert scripted.held() == PROMPT[:13]
        again = finish_of(run(scripted, raw=True, max_tokens=1))
        assert again.timings.reused_tokens == 13

    def test_time_that_is_enough_changes_nothing(self) -> None:
        assert ending(run(Scripted([64, 200002]), raw=True, max_time=1000)) == ("stop", None)


@pytest.mark.parametrize("value", [0, -1, True, "9", float("nan"), float("inf"), "9" * 999])
def test_a_time_that_is_none_is_refused_at_the_call(value: Any) -> None:
    with pytest.raises(SamplingError, match=r"^max_time is .*, but must be seconds above 0$") as e:
        Scripted([64]).engine.stream("hi", max_time=value)
    assert len(str(e.value)) < 140


class TestRepetition:
    """Token 0 is what the script says when its reply is over."""

    @pytest.mark.parametrize("period", [1, 2, 7, PERIOD])
    def test_going_round_in_a_circle_ends_the_answer(self, period: int) -> None:
        begun = list(range(1000, 1100))
        circle = list(range(500, 500 + period))
        scripted = Scripted([*begun, *(circle * (2 * LENGTH // period))], context=20_000)
        events = run(scripted, raw=True)
        assert ending(events) == ("length", "repetition")
        assert LENGTH + len(begun) <= len(ids_of(events)) <= LENGTH + len(begun) + 256
        assert scripted.held() == PROMPT + ids_of(events)

    def test_unless_it_is_asked_for(self) -> None:
        scripted = Scripted([64] * 5000, context=20_000)
        events = run(scripted, raw=True, max_tokens=5000, stop_repetition=False)
        assert ending(events) == ("length", "max_tokens")
        assert len(ids_of(events)) == 5000

    @pytest.mark.parametrize(
        "text",
        [
            "".join(f"| {i} | 0 | 0 | 0 | 0 |\n" for i in range(800)),
            "".join(f"    assert f({i}) == {i}\n" for i in range(800)),
            "a " * (LENGTH - 2),
            "".join("0," * 60 + f"{i}\n" for i in range(60)),
            ("All work and no play makes Jack a dull boy.\n" * 80 + "But then he stopped.\n") * 3,
        ],
        ids=["table", "code", "as asked", "rows", "lines"],
    )
    def test_what_differs_somewhere_goes_on(self, text: str) -> None:
        scripted = Scripted([*encoding().encode(text), 200002], context=50_000)
        assert ending(run(scripted, raw=True)) == ("stop", None)


def test_a_seed_that_is_drawn_is_whole_in_any_json_reader() -> None:
    seeds = [finish_of(run(Scripted([64]), raw=True, max_tokens=1)).seed for _ in range(30)]
    assert all(int(float(seed)) == seed < 2**53 for seed in seeds)
    assert len(set(seeds)) == 30
