"""Guesses earn their reads."""

from gptoss_mlx.backends.guesses import Guesses


def test_a_guess_is_worth_a_read_until_it_has_been_wrong() -> None:
    guesses = Guesses(8)
    assert guesses.make([5, 3, 5]) == [5, 3]
    assert guesses.open == {3, 5}
    assert guesses.settle([3, 1]) == {3}
    assert guesses.open == frozenset()
    assert guesses.make([3, 5]) == [3]
    assert guesses.open == {3, 5}


def test_an_expert_comes_back_when_its_guesses_come_true() -> None:
    guesses = Guesses(2)
    for _ in range(3):
        guesses.make([0])
        guesses.settle([1])
    seen = 0
    while not guesses.make([0]):
        guesses.settle([0])
        seen += 1
    assert 1 <= seen <= 3


def test_what_was_not_guessed_teaches_nothing() -> None:
    guesses = Guesses(3)
    for _ in range(5):
        guesses.make([0])
        guesses.settle([2])
    assert guesses.make([1, 2]) == [1, 2]
