"""Questions that mean something only after the turn before: "Now reverse them.", "And 5 more?"."""

# ruff: noqa: SIM905 (lists of phrases read better as text)
from __future__ import annotations

from random import Random

from convert.tiny.arithmetic import arithmetic
from convert.tiny.turns import Turn, cased, list_steps

BACK = (
    "Now reverse them.|Reverse that.|Now backwards.|And in reverse?|Now in reverse order.|"
    "Reverse it.|Backwards, please.|And backwards?|Now reverse the list.|Reverse them again."
).split("|")
AGAIN = (
    "Repeat that.|Again.|Once more.|Say it again.|Again, please.|Repeat it.|Say that once more.|"
    "One more time.|Say them again."
).split("|")
MOST_LISTED = 7  # words; `turns.ORDER` has numbers for a few more
MOST = 999  # the largest number of three digits, which the columns have


def follow(rng: Random, held_out: bool, before: Turn) -> Turn | None:
    """A turn that builds on a sum, a difference or a list; None if the turn can't be built on."""
    if before.skill in ("add", "subtract"):
        value = before.value
        assert isinstance(value, int)
        return arithmetic(rng, held_out, first=value) if 0 <= value <= MOST else None
    if before.skill not in ("repeat", "reverse"):
        return None
    words = before.value
    assert isinstance(words, list)
    if len(words) > MOST_LISTED:
        return None
    join = ", " if ", " in before.final else " "
    skill = rng.choice(("reverse", "reverse", "repeat"))
    user = cased(rng, rng.choice(BACK if skill == "reverse" else AGAIN))
    out = words[::-1] if skill == "reverse" else words
    return Turn(skill, user, list_steps(skill, words), join.join(out), out)
