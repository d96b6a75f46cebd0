"""Expert streaming in MLX: the output of a resident bank, from fewer slots than experts.

The router's choice in each layer is read back from the device. Experts that have a slot compute at
once; the others are read from the file into slots of experts this step does not need, and compute
when they are there. Meanwhile the experts that the next layer will probably choose are prefetched
into its bank. A prompt's chunk, which may need more experts than there are slots, visits them in
waves, those already present first, each wave computing while the next one is read.

No slot is written while a computation may read it. A call launches every computation on a bank
before it returns, and `Streaming.land` waits for all that is in flight, of any layer and any
sequence, before a call claims its first slot. Within the call, a claim spares the experts of the
wave in flight. With the environment variable GPTOSS_DEBUG_SLOTS=1 every computation that reads a
slot and every write to one is recorded, and an overlap raises AssertionError at once
(`slots.Watch`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.guesses import Guesses
from gptoss_mlx.backends.mlx.experts import ExpertBank
from gptoss_mlx.backends.mlx.ops.routing import Routing
from gptoss_mlx.backends.slots import Watch, debugging
from gptoss_mlx.backends.streaming import (
    Counts,
    ExpertStreaming,
    batched,
    filled,
    pairs_visiting,
)
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


class Streaming(ExpertStreaming):
    """`ExpertStreaming` in MLX, with the computations that are in flight."""

    counts: GuessCounts

    def __init__(self, tensors: Mapping[str, Tensor], reader: FileReader, slots: int) -> None:
        super().__init__(tensors, reader, slots, GuessCounts())
        self.watch = Watch() if debugging() else None
        self._flying: list[mx.array] = []

    def synchronize(self) -> None:
        """Nothing to wait for: reads go straight into the slots, without copies."""

    def launch(self, output: mx.array) -> None:
        """Start to compute an output that reads a bank, and record it as in flight."""
        self._flying.append(output)  # recorded first: an interrupt may come in between
        if self.watch is not None:
            self.watch.launch()
        self.compute(output)

    def compute(self, output: mx.array) -> None:
        mx.async_eval(output)  # type: ignore[no-untyped-call]

    def land(self, flying: int = 0) -> None:
        """Wait for all launched outputs but the last `flying`; most are computed already."""
        landing = self._flying[: len(self._flying) - flying]
        try:
            mx.eval(landing)
        except Exception:  # the computation failed: drop it, or the next call would fail too
            mx.synchronize()
            self._landed(len(self._flying))
            raise
        self._landed(len(landing))

    def _landed(self, count: int) -> None:
        if self.watch is not None:
            self.watch.land(count)
        del self._flying[:count]


class StreamedExperts:
    """One layer's experts, streamed into a bank of fewer slots; called as `ExpertBank` is."""

    def __init__(self, bank: ExpertBank, streaming: Streaming) -> None:
        self.bank, self.streaming = bank, streaming
        self.table = filled(bank.experts, bank.size)
        self.following: StreamedExperts | None = None
        self._matrices = [
            (streaming.tensors[name], np.asarray(array)) for name, array in bank.matrices.items()
        ]
        self._name = min(bank.matrices)
        self._coming: dict[int, Tasks] = {}
        self._guesses = Guesses(bank.experts)

    def __call__(
        self,
        x: mx.array,
        experts: mx.array,
        weights: mx.array,
        guess: mx.array | None = None,
        *,
        residual: mx.array | None = None,
        decoding: bool = False,
    ) -> mx.array:
        """x and residual [tokens, hidden], experts and weights [tokens, k] -> [tokens, hidden]

        guess: the next layer's probable experts. decoding: as `ExpertBank`.
        Raises CheckpointError if a read fails; the bank is then empty, and the next call fills it
        again.
        """
        mx.eval([experts, weights, *([] if guess is None else [guess])])
        self.streaming.land()
        step = _Step(x, experts, weights, residual)
        with self.streaming.changing(self):
            self.table.use(step.chosen.reshape(-1).tolist(), steps=x.shape[0])
            self._arrive(np.unique(step.chosen).tolist())
            if not decoding and x.shape[0] > 1:
                return self._grouped(step, guess)
            outputs = []
            *parts, last = step.parts(len(self.table))
            for part in parts:
                outputs.append(self._few_tokens(part, None))
                self.streaming.land()  # the next part reads experts into slots of this one's
            outputs.append(self._few_tokens(last, guess))
            return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs)

    @property
    def size(self) -> int:
        """Slots of the bank."""
        return len(self.table)

    def expect(self, guess: Sequence[int]) -> None:
        """Prefetch experts that will probably be chosen, surest first, where slots allow."""
        self.streaming.land()
        with self.streaming.also_changing(self):
            for expert in self._guesses.make(guess):
                if self._request(expert, self._guesses.open):
                    self.streaming.counts.prefetched += 1

    def _grouped(self, step: _Step, guess: mx.array | None) -> mx.array:
        """A chunk: every expert once for all its tokens, in waves if the slots are too few."""
        outputs, order = [], []
        for wave in self._waves(np.unique(step.chosen).tolist(), guess):
            pairs, slots = self._pairs(step.chosen, wave)
            x, routing = step.visits(pairs, slots, grouped=True)
            outputs.append(self.bank.down(self.bank.gate_up(x, routing), routing))
            self.streaming.launch(outputs[-1])
            order.append(pairs)
        y = _in_order(outputs, order).reshape(*step.experts.shape, -1).sum(axis=1)
        return y if step.residual is None else step.residual + y

    def _few_tokens(self, step: _Step, guess: mx.array | None) -> mx.array:
        """Decoded tokens: experts that are present compute gate_up while the others are read.

        The down projection is one call for all of them, as in a resident bank, so that their sum
        is rounded in the same way.
        """
        halves, order = [], []
        for wave in self._waves(np.unique(step.chosen).tolist(), guess):
            pairs, slots = self._pairs(step.chosen, wave)
            halves.append(self.bank.gate_up(*step.visits(pairs, slots)))
            self.streaming.launch(halves[-1])
            order.append(pairs)
        h = _in_order(halves, order).reshape(*step.experts.shape, -1)
        slots = mx.array([self._slots_read(chosen) for chosen in step.chosen.tolist()], mx.uint32)
        y = self.bank.down(h, Routing(slots, step.experts, step.weights), step.residual)
        self.streaming.launch(y)
        return y

    def _waves(self, needed: list[int], guess: mx.array | None) -> Iterator[list[int]]:
        """Yield the needed experts in waves; its experts are in their slots when it is yielded.

        The caller must launch a wave's computation before it asks for the next wave.
        """
        slots = len(self.table)
        if len(needed) > slots:
            self._await(needed)  # prefetched ones are then among the ready
        missing = [e for e in needed if e not in self.table.slot_of or e in self._coming]
        ready = [e for e in needed if e not in missing]
        if len(needed) <= slots:
            for expert in missing:
                self._request(expert, needed)
            if guess is not None and self.following is not None:
                self.following.expect(np.asarray(guess).T.reshape(-1).tolist())
            if ready:
                yield ready
            if missing:
                self._await(missing)
                yield missing
            return
        before: list[int] = []
        for wave in (*batched(ready, slots // 2), *batched(missing, slots // 2)):
            for expert in wave:
                self._request(expert, {*before, *wave})
            self._await(wave)
            yield wave
            self.streaming.land(flying=1)
            before = wave

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
        if self.streaming.watch is not None:
            self.streaming.watch.write((self._name, slot))
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
        if self.streaming.watch is not None:
            self.streaming.watch.wrote((self._name, self.table.slot_of[expert]))

    def empty(self) -> None:
        self._coming.clear()
        if self.streaming.watch is not None:
            self.streaming.watch.forget()
        self.table.clear()

    def _pairs(
        self, chosen: NDArray[np.uint32], wave: list[int]
    ) -> tuple[NDArray[np.uint32], mx.array]:
        """The (token, choice) pairs that visit these experts, and their slots, which ascend.

        [pairs], [pairs, 1]
        """
        pairs = pairs_visiting(chosen, wave).astype(np.uint32)
        taken = chosen.reshape(-1)[pairs].tolist()
        slots = np.array(self._slots_read(taken), np.uint32)
        order = np.argsort(slots, kind="stable")
        return pairs[order], mx.array(slots[order])[:, None]

    def _slots_read(self, experts: Sequence[int]) -> list[int]:
        """The experts' slots, which a computation that is being built will read."""
        slots = [self.table.slot_of[expert] for expert in experts]
        if self.streaming.watch is not None:
            self.streaming.watch.build([(self._name, slot) for slot in slots])
        return slots


class _Step:
    """The arguments of a call of a layer's experts.

    x and residual [tokens, hidden], the rest [tokens, k].
    """

    def __init__(
        self, x: mx.array, experts: mx.array, weights: mx.array, residual: mx.array | None
    ) -> None:
        self.x, self.experts, self.weights, self.residual = x, experts, weights, residual
        self.chosen: NDArray[np.uint32] = np.asarray(experts)

    def parts(self, slots: int) -> Iterator[_Step]:
        """The step in parts of consecutive tokens, none of which needs more experts than that."""
        begin, needed = 0, set[int]()
        for token, chosen in enumerate(self.chosen.tolist()):
            if len(needed.union(chosen)) > slots:
                yield self._part(begin, token)
                begin, needed = token, set()
            needed.update(chosen)
        yield self._part(begin, len(self.chosen))

    def _part(self, begin: int, end: int) -> _Step:
        if end - begin == len(self.chosen):
            return self
        x, experts, weights = (a[begin:end] for a in (self.x, self.experts, self.weights))
        return _Step(
            x, experts, weights, None if self.residual is None else self.residual[begin:end]
        )

    def visits(
        self, pairs: NDArray[np.uint32], slots: mx.array, grouped: bool = False
    ) -> tuple[mx.array, Routing]:
        """x [pairs, hidden] and the routing, k = 1, of some (token, choice) pairs.

        slots [pairs, 1]: where their experts lie
        """
        at, k = mx.array(pairs), self.chosen.shape[1]
        experts, weights = (a.reshape(-1, 1)[at] for a in (self.experts, self.weights))
        return self.x[at // k], Routing(slots, experts, weights, grouped)


def _in_order(outputs: list[mx.array], order: list[NDArray[np.uint32]]) -> mx.array:
    """The waves' outputs, joined in ascending order of pairs. order: the pairs of each wave."""
    y = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs)
    return y[mx.array(np.argsort(np.concatenate(order)))]
