"""Slot table of one layer's expert bank: which expert is in which slot, and which is evicted next.

Bookkeeping only: no arrays, no files, no threads. The victim is the expert with the smallest count
of uses, decayed at every step of the layer; of equals the one in the lowest slot.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import TypeAlias

# How much a use counts one step later. In the mean of all routing tried, 0.95 to 0.97 read equally
# few experts, fewer than other decays, LRU or LFU; only where routing drifts fast is LRU a little
# better. Figures: benchmarks/results/memory-policies.json.
DECAY = 0.97
_RESCALE = 1e100

DEBUG = "GPTOSS_DEBUG_SLOTS"
"""Environment variable: 1 checks that no slot is written while a computation may read it."""


class SlotTable:
    """`slots` slots for `experts` experts, all empty at first."""

    def __init__(self, experts: int, slots: int, decay: float = DECAY) -> None:
        if not 0 < slots <= experts:
            raise ValueError(f"{slots} slots are not within 1 to {experts} experts")
        self.expert_in: list[int | None] = [None] * slots
        self.slot_of: dict[int, int] = {}
        self._use = [0.0] * experts
        # A new use counts more instead of older ones less: the same proportions, and cheaper.
        self._weight, self._decay = 1.0, decay

    def __len__(self) -> int:
        return len(self.expert_in)

    def use(self, experts: Iterable[int], steps: int = 1) -> None:
        """Count a visit for each time an expert is named, spread evenly over so many steps."""
        self._weight /= self._decay**steps
        spread = (1 - self._decay**steps) / (steps * (1 - self._decay)) if steps > 1 else 1.0
        for expert in experts:
            self._use[expert] += self._weight * spread
        if self._weight > _RESCALE:
            self._use = [use / self._weight for use in self._use]
            self._weight = 1.0

    def claim(self, expert: int, keep: Collection[int]) -> int | None:
        """Give `expert` a slot: an empty one, else that of the least used expert not in `keep`.

        None if every slot holds an expert to keep. The expert must have no slot yet.
        """
        slot = self._victim(keep)
        if slot is not None:
            self.release(slot)
            self.expert_in[slot], self.slot_of[expert] = expert, slot
        return slot

    def release(self, slot: int) -> None:
        """Empty a slot."""
        expert, self.expert_in[slot] = self.expert_in[slot], None
        if expert is not None:
            del self.slot_of[expert]

    def clear(self) -> None:
        """Empty every slot, also if an interrupt has left the two directions inconsistent."""
        self.slot_of.clear()
        self.expert_in[:] = [None] * len(self.expert_in)

    def _victim(self, keep: Collection[int]) -> int | None:
        least, victim = float("inf"), None
        for slot, expert in enumerate(self.expert_in):
            if expert is None:
                return slot
            if expert not in keep and self._use[expert] < least:
                least, victim = self._use[expert], slot
        return victim


Slot: TypeAlias = tuple[str, int]
"""A layer's name and the number of a slot in its bank."""


def debugging() -> bool:
    return os.environ.get(DEBUG) == "1"


class Watch:
    """A race detector for slots: it is told, in order, what reads and what writes them.

    A computation is built, launched and landed, that is computed; a write begins and ends. A read
    and a write that overlap, or two writes, raise AssertionError at once, with the slot.
    """

    def __init__(self) -> None:
        self._built: set[Slot] = set()
        self._flying: list[set[Slot]] = []
        self._written: set[Slot] = set()

    def build(self, slots: Collection[Slot]) -> None:
        """A computation that reads these is built."""
        self._check(self._written.intersection(slots), "read while it is being written")
        self._built.update(slots)

    def launch(self) -> None:
        """All that has been built is launched, as one computation."""
        self._flying.append(self._built)
        self._built = set()

    def land(self, launches: int) -> None:
        """The oldest `launches` launches have been computed."""
        del self._flying[:launches]

    def write(self, slot: Slot) -> None:
        """A write begins."""
        self._check({slot} & self._built, "written before what reads it is launched")
        in_flight = any(slot in slots for slots in self._flying)
        self._check([slot] if in_flight else [], "written while what reads it is in flight")
        self._check({slot} & self._written, "written twice at a time")
        self._written.add(slot)

    def wrote(self, slot: Slot) -> None:
        """A write has ended."""
        self._written.discard(slot)

    def forget(self) -> None:
        """Computations that are built but not launched are given up; no write is under way."""
        self._built.clear()
        self._written.clear()

    def _check(self, found: Collection[Slot], what: str) -> None:
        for layer, slot in sorted(found):
            raise AssertionError(f"slot {slot} of {layer} is {what}")
