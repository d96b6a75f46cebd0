"""A layer's bank of fewer slots than experts: which lies where, which are being read, and which are
prefetched because the layer before guessed them.

A backend's subclass computes. In each step it calls `_arrive` with what the router chose, requests
what is missing, and waits for it: from `_request` to `_await` the reader's threads write the slot.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from gptoss_mlx.backends.guesses import Guesses
from gptoss_mlx.backends.streaming import Counts, ExpertStreaming, filled
from gptoss_mlx.files.pool import Tasks
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import Tensor


@dataclass
class GuessCounts(Counts):
    """Counts of a model's streaming, with those of its guesses.

    guessed, guessed_right: experts foreseen for the next layer, and how many of them it chose.
    prefetched, prefetch_used: experts read because of a guess, and how many were then chosen.
    """

    guessed: int = 0
    guessed_right: int = 0
    prefetched: int = 0
    prefetch_used: int = 0


class PrefetchStreaming(ExpertStreaming):
    """`ExpertStreaming` that reads straight into the slots, also what is guessed."""

    counts: GuessCounts

    def __init__(self, tensors: Mapping[str, Tensor], reader: FileReader, slots: int) -> None:
        super().__init__(tensors, reader, slots, GuessCounts())

    def synchronize(self) -> None:
        """Nothing to wait for: reads go straight into the slots, without copies."""


class StreamedBank:
    """One layer's slots and the reads into them. following: the next layer's."""

    following: StreamedBank | None = None

    def __init__(
        self, streaming: PrefetchStreaming, matrices: Mapping[str, NDArray[Any]], experts: int
    ) -> None:
        self.streaming = streaming
        self.table = filled(experts, streaming.slots)
        self._matrices = [(streaming.tensors[name], array) for name, array in matrices.items()]
        self._coming: dict[int, Tasks] = {}
        self._guesses = Guesses(experts)

    @property
    def size(self) -> int:
        """Slots of the bank."""
        return len(self.table)

    def expect(self, guess: Sequence[int]) -> None:
        """Prefetch experts that will probably be chosen, surest first, where slots allow."""
        with self.streaming.also_changing(self):
            for expert in self._guesses.make(guess):
                if self._request(expert, self._guesses.open):
                    self.streaming.counts.prefetched += 1

    def empty(self) -> None:
        self._coming.clear()
        self.table.clear()

    def _arrive(self, needed: Sequence[int]) -> None:
        """Count hits and misses; abandon reads that are not needed or have failed."""
        counts, chosen = self.streaming.counts, set(needed)
        for expert, load in [*self._coming.items()]:
            if expert not in chosen or load.failed():
                arrived = load.abandon()
                self._came(expert)
                if not arrived:
                    self.table.release(self.table.slot_of[expert])
        hits = len(chosen & self.table.slot_of.keys())
        counts.hits += hits
        counts.misses += len(chosen) - hits
        counts.guessed += len(self._guesses.open)
        counts.guessed_right += len(self._guesses.settle(chosen))
        counts.prefetch_used += len(self._coming)

    def _request(self, expert: int, keep: Collection[int]) -> bool:
        """Begin to read an expert into the slot of one not in `keep`; whether a read began."""
        if expert in self.table.slot_of:
            return False
        slot = self.table.claim(expert, {*keep, *self._coming})
        if slot is None:
            return False
        self._written(slot)
        parts = [(tensor[expert], view[slot].data) for tensor, view in self._matrices]
        self._coming[expert] = self.streaming.reader.read(parts)
        self.streaming.counts.bytes_read += sum(tensor.nbytes for tensor, _ in parts)
        return True

    def _await(self, experts: Sequence[int]) -> None:
        begun = time.perf_counter()
        for expert in experts:
            if expert in self._coming:
                self._coming[expert].wait()
                self._came(expert)
        self.streaming.counts.stall += time.perf_counter() - begun

    def _came(self, expert: int) -> None:
        """Record that the read into an expert's slot is over, completed or abandoned."""
        del self._coming[expert]

    def _written(self, slot: int) -> None:
        """Called before a slot is written."""
