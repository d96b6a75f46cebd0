"""Prefetch guesses: which experts a layer will probably choose, and how often that came true.

A guess is made one layer ahead: the layer's own router is given the residual stream of the layer
before. Most guessed experts have a slot already. Those that have none are rarer, and the router may
be wrong about the same one again and again. So every expert has a record, and only those that were
chosen after about half of their guesses or more are worth reading early.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

RATE = 0.1  # weight of the newest guess in an expert's record, a moving average
WORTH = 0.5  # least record of an expert that is read early


class Guesses:
    """The guesses of one layer. An expert that was never guessed counts as worth reading."""

    def __init__(self, experts: int) -> None:
        self.open: frozenset[int] = frozenset()
        self._record = [WORTH] * experts

    def make(self, experts: Sequence[int]) -> list[int]:
        """Guess these experts, the surest first; returns those worth reading early."""
        self.open = frozenset(experts)
        return [e for e in dict.fromkeys(experts) if self._record[e] >= WORTH]

    def settle(self, chosen: Collection[int]) -> frozenset[int]:
        """Update the records with the router's choice; returns the experts guessed right."""
        right = self.open & frozenset(chosen)
        for expert in self.open:
            self._record[expert] += RATE * ((expert in right) - self._record[expert])
        self.open = frozenset()
        return right
