"""Past turns: finished ones at the head of a conversation."""

from __future__ import annotations

from random import Random
from typing import Any

from convert.tiny.arithmetic import arithmetic
from convert.tiny.example import user_message
from convert.tiny.followups import follow
from convert.tiny.turns import Turn, ask, greet, other, tell, word_list


def simple(rng: Random, held_out: bool) -> Turn:
    """A turn that needs nothing said before."""
    draw = rng.random()
    if draw < 0.4:
        return arithmetic(rng, held_out)
    if draw < 0.7:
        return word_list(rng, held_out)
    return greet(rng, held_out) if draw < 0.9 else other(rng, held_out)


def past(rng: Random, held_out: bool, count: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Finished turns, and what the user told in them."""
    messages: list[dict[str, Any]] = []
    known: dict[str, str] = {}
    before: Turn | None = None
    for _ in range(count):
        turn = tell(rng, known) if rng.random() < 0.35 else None
        if turn is None and known and rng.random() < 0.2:
            turn = ask(rng, known)
        if turn is None and before is not None and rng.random() < 0.25:
            turn = follow(rng, held_out, before)
        turn = before = turn or simple(rng, held_out)
        known |= turn.facts
        messages += [user_message(turn.user), {"role": "assistant", "content": turn.final}]
    return messages, known
