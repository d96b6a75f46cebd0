"""Expert streaming on a CPU: the output of a resident bank, from fewer slots than experts.

Experts that have a slot compute at once; the others are read from the file meanwhile, into slots of
experts this step does not need, and compute when they are there. A prompt's chunk, which may need
more experts than there are slots, visits them in waves.

A kernel is done when its call returns, so no slot is written while it is read: a wave's reads are
waited for before it computes, and reads that go on meanwhile are into slots of other experts.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.cpu.experts import ExpertBank
from gptoss_mlx.backends.cpu.step import Buffers
from gptoss_mlx.backends.streaming import (
    ExpertStreaming,
    batched,
    filled,
    pairs_visiting,
)
from gptoss_mlx.files.pool import Tasks

Array: TypeAlias = NDArray[Any]


class Streaming(ExpertStreaming):
    """`ExpertStreaming` in the host's memory."""

    def synchronize(self) -> None:
        """Nothing to wait for: reads go straight into the slots, without copies."""


class StreamedExperts:
    """One layer's experts, streamed into a bank of fewer slots."""

    def __init__(self, bank: ExpertBank, streaming: Streaming) -> None:
        self.bank, self.streaming = bank, streaming
        self.table = filled(bank.experts, bank.size)
        self._matrices = [(streaming.tensors[name], array) for name, array in bank.matrices.items()]
        self._coming: dict[int, Tasks] = {}

    def visit(self, device: library.Device, buffers: Buffers, n: int) -> None:
        """The visits of n tokens, as chosen in the buffers.

        Raises CheckpointError if a read fails; the bank is then empty, and the next call fills it
        again.
        """
        chosen = buffers.ids[:n]
        with self.streaming.changing(self):
            self.table.use(chosen.reshape(-1).tolist(), steps=n)
            for wave in self._waves(np.unique(chosen).tolist()):
                pairs = pairs_visiting(chosen, wave)
                self._compute(device, buffers, n, pairs)

    def empty(self) -> None:
        self._coming.clear()
        self.table.clear()

    def _compute(self, device: library.Device, buffers: Buffers, n: int, pairs: Array) -> None:
        """Pairs of a token and an expert that has arrived."""
        experts = np.ascontiguousarray(buffers.ids.reshape(-1)[pairs])
        slot = np.array([self.table.slot_of[expert] for expert in experts.tolist()], np.int32)
        weight = buffers.weights.reshape(-1)[pairs]
        row, place = buffers.row[pairs], buffers.place[pairs]
        call = self.bank.visits(buffers, n, len(pairs), slot, row, place, experts, weight)
        device.moe_gate_up(device.handle, ctypes.byref(call))
        device.moe_down(device.handle, ctypes.byref(call))

    def _waves(self, needed: Sequence[int]) -> Iterator[list[int]]:
        """Yield the needed experts in waves, each once, when they are in their slots: those that
        are there first, while the next wave is read."""
        counts = self.streaming.counts
        ready = [e for e in needed if e in self.table.slot_of]
        missing = [e for e in needed if e not in self.table.slot_of]
        counts.hits += len(ready)
        counts.misses += len(missing)
        slots = len(self.table)
        size = max(1, slots // 2)
        waves = [*batched(ready, slots if len(needed) <= slots else size)]
        waves += batched(missing, size if len(needed) > slots else slots)
        for i, wave in enumerate(waves):
            following = waves[i + 1] if i + 1 < len(waves) else []
            self._request(wave, {*wave, *following})
            self._await(wave)
            # The next wave is read while this one computes, into slots of neither.
            self._request(following, {*wave, *following})
            yield wave

    def _request(self, experts: Sequence[int], keep: Collection[int]) -> None:
        """Begin to read experts that have no slot into slots of those not in `keep`."""
        for expert in experts:
            if expert in self.table.slot_of:
                continue
            slot = self.table.claim(expert, keep)
            if slot is None:
                return
            parts = [(tensor[expert], view[slot].data) for tensor, view in self._matrices]
            self._coming[expert] = self.streaming.reader.read(parts)
            self.streaming.counts.bytes_read += sum(tensor.nbytes for tensor, _ in parts)

    def _await(self, experts: Sequence[int]) -> None:
        begun = time.perf_counter()
        for expert in experts:
            if expert in self._coming:
                self._coming[expert].wait()
                del self._coming[expert]
        self.streaming.counts.stall += time.perf_counter() - begun
