"""Which expert lies in which slot of one layer's bank, and which leaves next.

Bookkeeping only: no arrays, no files, no threads. The victim is the expert whose use, decayed with
every step of the layer, is the smallest; of equals the one in the lowest slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

# What a use counts for one step later. In the mean of all routing tried 0.95 to 0.97 load alike and
# less than other decays, LRU or LFU; only where routing drifts fast is LRU a little better.
# Figures: benchmarks/results/memory-policies.json.
DECAY = 0.97
_RESCALE = 1e100


class SlotTable:
    """`slots` slots for `experts` experts, all empty at first."""

    def __init__(self, experts: int, slots: int, decay: float = DECAY) -> None:
        if not 0 < slots <= experts:
            raise ValueError(f"{slots} slots are not within 1 to {experts} experts")
        self.expert_in: list[int | None] = [None] * slots
        self.slot_of: dict[int, int] = {}
        self._use = [0.0] * experts
        # Older uses shrink by decay; growing what a new one counts is the same, and cheaper.
        self._weight, self._decay = 1.0, decay

    def __len__(self) -> int:
        return len(self.expert_in)

    def use(self, experts: Iterable[int], steps: int = 1) -> None:
        """The layer visited these experts, once for each time they are named, in so many steps."""
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
        """Empty every slot, also where an interrupt has left the two directions apart."""
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
