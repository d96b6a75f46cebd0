"""Which expert leaves a full bank: the product's own table, and others to compare it with.

One layer's bank of S slots is shown the experts of each decode step in turn. All experts of a step
must be in the bank at once, so none of them leaves for another of the same step. What a step loads
is what was not there; no policy may load anything else, so fewer loads are more hits.

Belady's policy knows the future: of the experts the step does not need it drops the one needed
again last. It is the limit of every other (Belady, "A study of replacement algorithms for a
virtual-storage computer", 1966; in sets: a step's loads are one by one, each with the others kept).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from random import Random
from typing import Protocol

from gptoss_mlx.backends.slots import DECAY, SlotTable

Stream = Sequence[Sequence[int]]
"""The experts of one layer, step by step."""


class Bank(Protocol):
    """S slots under some policy."""

    @property
    def held(self) -> AbstractSet[int]:
        """The experts in the bank."""

    def visit(self, chosen: Sequence[int]) -> list[int]:
        """One step needs these distinct experts -> those that had to be loaded."""


Policy = Callable[[Stream, int, int], Bank]
"""(the stream to come, number of experts, slots) -> an empty bank; only oracles look ahead."""


class TableBank:
    """`gptoss_mlx.backends.slots.SlotTable`, used as the runtime uses it."""

    def __init__(self, stream: Stream, experts: int, slots: int, decay: float = DECAY) -> None:
        self.table = SlotTable(experts, slots, decay)

    @property
    def held(self) -> AbstractSet[int]:
        return self.table.slot_of.keys()

    def visit(self, chosen: Sequence[int]) -> list[int]:
        missing = [expert for expert in chosen if expert not in self.table.slot_of]
        self.table.use(chosen)
        for expert in missing:
            if self.table.claim(expert, chosen) is None:
                raise ValueError(f"{len(chosen)} experts do not fit {len(self.table)} slots")
        return missing


class RankedBank(ABC):
    """Drops the expert that is worth least, of equals the one with the lowest id."""

    def __init__(self, stream: Stream, experts: int, slots: int) -> None:
        self.slots = slots
        self.held: set[int] = set()

    def visit(self, chosen: Sequence[int]) -> list[int]:
        missing = [expert for expert in chosen if expert not in self.held]
        self.note(chosen)
        for expert in missing:
            if len(self.held) == self.slots:
                self.held.remove(self.victim(self.held.difference(chosen)))
            self.held.add(expert)
        return missing

    def victim(self, free: set[int]) -> int:
        if not free:
            raise ValueError(f"the experts of a step do not fit {self.slots} slots")
        return min(free, key=lambda expert: (self.worth(expert), expert))

    @abstractmethod
    def note(self, chosen: Sequence[int]) -> None:
        """The step that is about to be loaded."""

    @abstractmethod
    def worth(self, expert: int) -> float: ...


class Recent(RankedBank):
    """LRU: worth is the step of the last use."""

    def __init__(self, stream: Stream, experts: int, slots: int) -> None:
        super().__init__(stream, experts, slots)
        self.last = [-1] * experts
        self.now = 0

    def note(self, chosen: Sequence[int]) -> None:
        for expert in chosen:
            self.last[expert] = self.now
        self.now += 1

    def worth(self, expert: int) -> float:
        return self.last[expert]


class Frequent(RankedBank):
    """LFU: worth is the number of uses so far, none of them forgotten."""

    def __init__(self, stream: Stream, experts: int, slots: int) -> None:
        super().__init__(stream, experts, slots)
        self.uses: Counter[int] = Counter()

    def note(self, chosen: Sequence[int]) -> None:
        self.uses.update(chosen)

    def worth(self, expert: int) -> float:
        return self.uses[expert]


class Popular(RankedBank):
    """An oracle of frequencies: worth is the number of uses in the whole stream."""

    def __init__(self, stream: Stream, experts: int, slots: int) -> None:
        super().__init__(stream, experts, slots)
        self.uses = Counter(expert for chosen in stream for expert in chosen)

    def note(self, chosen: Sequence[int]) -> None:
        pass

    def worth(self, expert: int) -> float:
        return self.uses[expert]


class Chance(RankedBank):
    """Any expert the step does not need, with equal chances; the same ones every time."""

    def __init__(self, stream: Stream, experts: int, slots: int) -> None:
        super().__init__(stream, experts, slots)
        self.rng = Random(0)

    def note(self, chosen: Sequence[int]) -> None:
        pass

    def worth(self, expert: int) -> float:
        return self.rng.random()


class Belady(RankedBank):
    """The limit: worth falls with the step of the next use."""

    def __init__(self, stream: Stream, experts: int, slots: int) -> None:
        super().__init__(stream, experts, slots)
        self.uses: list[deque[int]] = [deque() for _ in range(experts)]
        for step, chosen in enumerate(stream):
            for expert in chosen:
                self.uses[expert].append(step)

    def note(self, chosen: Sequence[int]) -> None:
        for expert in chosen:
            self.uses[expert].popleft()

    def worth(self, expert: int) -> float:
        uses = self.uses[expert]
        return -uses[0] if uses else -float("inf")


DECAYS = (0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
LIMIT = "Belady (limit)"
PRODUCT = f"table {DECAY:g}"

POLICIES: dict[str, Policy] = {
    "random": Chance,
    "LRU": Recent,
    "LFU": Frequent,
    **{f"table {decay:g}": partial(TableBank, decay=decay) for decay in sorted({*DECAYS, DECAY})},
    "most popular (oracle)": Popular,
    LIMIT: Belady,
}
"""By name; "table" is the product's SlotTable with a decay, PRODUCT the one it has."""


def loads(policy: Policy, stream: Stream, experts: int, slots: int) -> list[int]:
    """How many experts each step of a stream had to load."""
    bank = policy(stream, experts, slots)
    return [len(bank.visit(chosen)) for chosen in stream]
