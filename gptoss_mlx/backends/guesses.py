"""Which experts a layer will probably choose, and how far such guesses have come true.

A guess is made a layer ahead, by the layer's own router. Most guessed experts have a slot already;
those that have none are the less usual ones, and there the router a layer ahead may well be wrong
again and again about the same expert. So every expert has a record, and only those whose guesses
came true more often than not are worth reading early.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

RATE = 0.1  # weight of the newest guess in an expert's record
WORTH = 0.5  # share of guesses that must have come true


class Guesses:
    """The guesses of one layer. Each expert begins with the benefit of the doubt."""

    def __init__(self, experts: int) -> None:
        self.open: frozenset[int] = frozenset()
        self._record = [WORTH] * experts

    def make(self, experts: Sequence[int]) -> list[int]:
        """Guess these, the surest first; those worth reading early are returned."""
        self.open = frozenset(experts)
        return [e for e in dict.fromkeys(experts) if self._record[e] >= WORTH]

    def settle(self, chosen: Collection[int]) -> frozenset[int]:
        """The choice is known: learn from it. Those guessed right are returned."""
        right = self.open & frozenset(chosen)
        for expert in self.open:
            self._record[expert] += RATE * ((expert in right) - self._record[expert])
        self.open = frozenset()
        return right
