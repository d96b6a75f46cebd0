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

from collections.abc import Iterator, Mapping, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.bank import PrefetchStreaming, StreamedBank
from gptoss_mlx.backends.mlx.experts import ExpertBank
from gptoss_mlx.backends.mlx.ops.routing import Routing
from gptoss_mlx.backends.slots import Watch, debugging
from gptoss_mlx.backends.streaming import batched, pairs_visiting
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import Tensor


class Streaming(PrefetchStreaming):
    """`PrefetchStreaming` in MLX, with the computations that are in flight."""

    def __init__(self, tensors: Mapping[str, Tensor], reader: FileReader, slots: int) -> None:
        super().__init__(tensors, reader, slots)
        self.watch = Watch() if debugging() else None
        self._flying: list[mx.array] = []

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


class StreamedExperts(StreamedBank):
    """One layer's experts, streamed into a bank of fewer slots; called as `ExpertBank` is."""

    streaming: Streaming

    def __init__(self, bank: ExpertBank, streaming: Streaming) -> None:
        matrices = {name: np.asarray(array) for name, array in bank.matrices.items()}
        super().__init__(streaming, matrices, bank.experts)
        self.bank, self._name = bank, min(matrices)

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

    def expect(self, guess: Sequence[int]) -> None:
        """As `StreamedBank` does, when no computation reads a slot any more."""
        self.streaming.land()
        super().expect(guess)

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

    def _written(self, slot: int) -> None:
        if self.streaming.watch is not None:
            self.streaming.watch.write((self._name, slot))

    def _came(self, expert: int) -> None:
        super()._came(expert)
        if self.streaming.watch is not None:
            self.streaming.watch.wrote((self._name, self.table.slot_of[expert]))

    def empty(self) -> None:
        if self.streaming.watch is not None:
            self.streaming.watch.forget()
        super().empty()

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
