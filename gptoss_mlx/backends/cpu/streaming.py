"""Expert streaming on a CPU: the output of a resident bank, from fewer slots than experts.

Experts that have a slot compute at once; the others are read from the file meanwhile, into slots of
experts this step does not need, and compute when they are there. A prompt's chunk, which may need
more experts than there are slots, visits them in waves. While decoding, the experts that the next
layer will probably choose are prefetched into its bank.

A kernel is done when its call returns, so no slot is written while it is read: a wave's reads are
waited for before it computes, and reads that go on meanwhile are into slots of other experts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.bank import PrefetchStreaming, StreamedBank
from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.cpu.experts import ExpertBank
from gptoss_mlx.backends.cpu.step import Buffers
from gptoss_mlx.backends.streaming import batched, pairs_visiting

Array: TypeAlias = NDArray[Any]


class StreamedExperts(StreamedBank):
    """One layer's experts, streamed into a bank of fewer slots."""

    def __init__(self, bank: ExpertBank, streaming: PrefetchStreaming) -> None:
        super().__init__(streaming, bank.matrices, bank.experts)
        self.bank = bank

    def visit(
        self, device: library.Device, buffers: Buffers, n: int, guess: Array | None = None
    ) -> None:
        """The visits of n tokens, as chosen in the buffers.

        guess int32 [n, k]: the next layer's probable experts. Raises CheckpointError if a read
        fails; the bank is then empty, and the next call fills it again.
        """
        chosen = buffers.ids[:n]
        with self.streaming.changing(self):
            self.table.use(chosen.reshape(-1).tolist(), steps=n)
            needed = np.unique(chosen).tolist()
            self._arrive(needed)
            foreseen = [] if guess is None else guess.T.reshape(-1).tolist()
            for wave in self._waves(needed, foreseen):
                pairs = pairs_visiting(chosen, wave)
                self._compute(device, buffers, n, pairs)

    def _compute(self, device: library.Device, buffers: Buffers, n: int, pairs: Array) -> None:
        """Pairs of a token and an expert that has arrived."""
        experts = np.ascontiguousarray(buffers.ids.reshape(-1)[pairs])
        slot = np.array([self.table.slot_of[expert] for expert in experts.tolist()], np.int32)
        weight = buffers.weights.reshape(-1)[pairs]
        row, place = buffers.row[pairs], buffers.place[pairs]
        call = self.bank.visits(buffers, n, len(pairs), slot, row, place, experts, weight)
        device.moe_gate_up(device.handle, ctypes.byref(call))
        device.moe_down(device.handle, ctypes.byref(call))

    def _waves(self, needed: list[int], guess: Sequence[int]) -> Iterator[list[int]]:
        """Yield the needed experts in waves, each once, when they are in their slots: those that
        are there first, while the next wave is read."""
        slots = len(self.table)
        if len(needed) > slots:
            self._await(needed)  # prefetched ones are then among the ready
        ready = [e for e in needed if e in self.table.slot_of and e not in self._coming]
        missing = [e for e in needed if e not in ready]
        size = slots if len(needed) <= slots else max(1, slots // 2)
        waves = [*batched(ready, size), *batched(missing, size)]
        for i, wave in enumerate(waves):
            following = waves[i + 1] if i + 1 < len(waves) else []
            # The next wave is read while this one computes, into slots of neither.
            for expert in (*wave, *following):
                self._request(expert, {*wave, *following})
            if i == 0 and guess and self.following is not None:
                self.following.expect(guess)
            self._await(wave)
            yield wave
