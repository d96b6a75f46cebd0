"""A session on a model that only remembers: it holds the prompt, and keeps all it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gptoss_mlx.backends.protocol import AnyModel
from gptoss_mlx.engine.marks import Marks
from gptoss_mlx.engine.session import SNAPSHOT_BUDGET, Session
from tests.support.ring_model import RingModel, RingState

WINDOW = 6


def session_of(budget: int = SNAPSHOT_BUDGET, window: int = WINDOW) -> Session:
    return Session(cast(AnyModel, RingModel(window=window, chunk=4)), budget)


def state_of(session: Session) -> RingState:
    assert isinstance(session.state, RingState)
    return session.state


def read(session: Session, ids: Sequence[int], mark: bool = True) -> int:
    """Bring a session to a prompt as the engine does; returns how much was reused."""
    reused = session.resume(ids)
    list(session.prefill(ids[reused:-1]))
    if mark:
        session.mark()
    write(session, ids[-1:])
    return reused


def decode(session: Session, id: int) -> None:
    session.model.decode([[id]], [session.state])


def write(session: Session, ids: Sequence[int]) -> None:
    for id in ids:
        decode(session, id)
        session.note(id)


@dataclass(frozen=True)
class Turn:
    """A prompt: so many tokens of what the session holds, and new ones; then an answer."""

    keep: int
    new: list[int]
    mark: bool
    answer: list[int]
    pending: bool


TOKENS = st.integers(0, 1)
TURNS = st.builds(
    Turn,
    keep=st.integers(0, 60),
    new=st.lists(TOKENS, min_size=1, max_size=12),
    mark=st.booleans(),
    answer=st.lists(TOKENS, max_size=10),
    pending=st.booleans(),
)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    return max(n for n in range(min(len(a), len(b)) + 1) if list(a[:n]) == list(b[:n]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(turns=st.lists(TURNS, max_size=8), snapshots=st.integers(0, 4))
def test_any_conversation_is_held_exactly_and_reused_at_most(
    turns: list[Turn], snapshots: int
) -> None:
    session = session_of(budget=snapshots * WINDOW + WINDOW // 2)
    held: list[int] = []  # by our own account
    length = 0  # of the state, a pending token included
    marks: list[list[int]] = []
    for turn in turns:
        ids = held[: turn.keep] + turn.new
        same = common(held, ids[:-1])
        choices = [len(m) for m in marks if len(m) <= same] + [0]
        if length in (same, same + 1) or length <= WINDOW:
            choices.append(same)
        reused = session.resume(ids)
        event(f"reused {'nothing' if not reused else 'all' if reused == same else 'a part'}")
        assert reused == max(choices)
        assert session.tokens == state_of(session).held() == ids[:reused]
        marks = [m for m in marks if len(m) <= reused]

        list(session.prefill(ids[reused:-1]))
        assert session.tokens == state_of(session).held() == ids[:-1]
        if turn.mark and ids[:-1]:
            session.mark()
            marks = [m for m in marks if m != ids[:-1]] + [ids[:-1]]
            marks = marks[len(marks) - snapshots :] if snapshots < len(marks) else marks
        assert [s.offset for s in session.snapshots] == [len(m) for m in marks]
        write(session, [ids[-1], *turn.answer])
        held = ids + turn.answer
        assert session.tokens == state_of(session).held() == held
        length = len(held)
        if turn.pending:
            decode(session, 7)
            length += 1


def test_the_last_token_is_always_read_again() -> None:
    session = session_of()
    read(session, [1, 2, 3])
    assert read(session, [1, 2, 3]) == 2
    assert read(session, [1, 2]) == 1
    assert read(session, [1]) == 0
    assert state_of(session).held() == [1]


def test_going_on_moves_nothing() -> None:
    session = session_of()
    read(session, list(range(20)))
    write(session, [20, 21])
    state_of(session).moves.clear()
    assert read(session, [*range(22), 30]) == 22
    assert state_of(session).moves in ([], [("trim", 22)])
    assert state_of(session).held() == [*range(22), 30]


def test_within_the_window_it_is_cut_back_without_a_snapshot() -> None:
    session = session_of()
    read(session, [1, 2, 3, 4, 5], mark=False)
    write(session, [6])
    assert read(session, [1, 2, 3, 9], mark=False) == 3
    assert state_of(session).moves[-1] == ("trim", 3)
    assert state_of(session).held() == [1, 2, 3, 9]


def test_one_token_beyond_the_window_it_needs_a_snapshot() -> None:
    session = session_of()
    read(session, [1, 2, 3, 4, 5], mark=False)
    write(session, [6, 7])
    assert read(session, [1, 2, 3, 9], mark=False) == 0
    assert state_of(session).held() == [1, 2, 3, 9]


def test_the_last_token_is_forgotten_at_any_length_but_only_one() -> None:
    session = session_of()
    read(session, list(range(20)), mark=False)
    assert session.resume([*range(19), 50, 51]) == 19
    assert session.resume([*range(18), 50]) == 0


def test_the_newest_snapshot_that_fits_is_restored() -> None:
    session = session_of()
    for end in (10, 14, 18):
        read(session, list(range(end)))
    assert [s.offset for s in session.snapshots] == [9, 13, 17]
    assert session.resume([*range(15), 99, 98]) == 13
    assert state_of(session).moves[-1] == ("restore", 13)
    assert [s.offset for s in session.snapshots] == [9, 13]


def test_a_snapshot_serves_more_than_once() -> None:
    session = session_of()
    read(session, list(range(12)))
    write(session, range(50, 60))
    for other in (70, 80, 90):
        assert read(session, [*range(11), *range(other, other + 9)], mark=False) == 11
        assert state_of(session).held() == [*range(11), *range(other, other + 9)]


def test_a_pending_token_is_forgotten() -> None:
    session = session_of()
    read(session, list(range(12)))
    decode(session, 50)
    assert read(session, list(range(12))) == 11
    write(session, [12])
    decode(session, 50)
    assert read(session, [*range(13), 60]) == 13
    decode(session, 50)
    decode(session, 50)
    assert read(session, [*range(13), 61]) == 13  # where the snapshot is: the ring went too far
    assert state_of(session).held() == [*range(13), 61]


def test_the_budget_lets_the_oldest_go() -> None:
    session = session_of(budget=2 * WINDOW)
    for end in (10, 20, 30):
        read(session, list(range(end)))
    assert [s.offset for s in session.snapshots] == [19, 29]
    assert sum(s.nbytes for s in session.snapshots) <= session.budget
    assert session.resume([*range(15), 99]) == 0


def test_what_every_conversation_goes_back_to_stays_longest() -> None:
    session = session_of(budget=3 * WINDOW)
    list(session.prefill(list(range(60)), Marks((10, 20, 30, 40, 50, 60), head=10, reply=30)))
    assert [s.offset for s in session.snapshots] == [10, 30, 60]
    session = session_of(budget=WINDOW)
    list(session.prefill(list(range(60)), Marks((10, 20, 30, 40, 50, 60), head=10, reply=30)))
    assert [s.offset for s in session.snapshots] == [60]


def test_an_answer_ends_before_its_stop_token() -> None:
    session = session_of()
    read(session, list(range(20)))
    write(session, [30, 31, 32])
    session.mark_answer()
    session.mark_answer()
    assert [s.offset for s in session.snapshots] == [19, 22]
    write(session, range(50, 70))
    assert read(session, [*range(20), 30, 31, 40, 41]) == 22
    assert state_of(session).held() == [*range(20), 30, 31, 40, 41]


def test_it_says_what_going_on_would_lose() -> None:
    session = session_of()
    list(session.prefill(list(range(60)), Marks((10, 20, 30, 40, 50, 60), head=10, reply=50)))
    write(session, range(80, 99))
    for kept, lost in ((15, True), (25, True), (45, True), (50, False), (55, False), (60, False)):
        assert session.loses([*range(kept), 99, 98]) is lost


def test_a_snapshot_larger_than_the_budget_is_not_kept() -> None:
    session = session_of(budget=WINDOW - 1)
    read(session, list(range(10)))
    assert session.snapshots == []
    write(session, [50] * 9)
    assert session.resume(list(range(10))) == 0


def test_one_place_is_marked_once() -> None:
    session = session_of()
    read(session, list(range(10)))
    read(session, list(range(10)))
    session.resume(list(range(10)))
    session.mark()
    session.mark()
    assert [s.offset for s in session.snapshots] == [9]


def test_a_foreign_prompt_starts_anew() -> None:
    session = session_of()
    read(session, list(range(20)))
    before = session.state
    assert read(session, list(range(40, 60))) == 0
    assert session.state is not before
    assert state_of(session).held() == list(range(40, 60))


def test_prefill_goes_in_chunks_and_says_how_far() -> None:
    session = session_of()
    steps = session.prefill(list(range(10)))
    assert next(steps) == 4
    assert session.tokens == [0, 1, 2, 3]  # right at every stop: a stream may end here
    assert list(steps) == [8, 10]
    model = session.model
    assert isinstance(model, RingModel)
    assert [len(ids) for _, ids in model.log] == [4, 4, 2]
    assert list(session.prefill([])) == []


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_prefill_left_half_way_is_taken_up_there(stop: int) -> None:
    session = session_of()
    ids = list(range(15))
    steps = session.prefill(ids[session.resume(ids) : -1])
    for _ in range(stop):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert session.resume(ids) == 4 * stop
    list(session.prefill(ids[4 * stop : -1]))
    assert state_of(session).held() == ids[:-1]
