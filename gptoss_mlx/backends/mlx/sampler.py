"""The sampler's operations in MLX. Arrays are lazy: the step after a choice is queued before the
choice is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np

from gptoss_mlx.backends.sampler import Fetch, RuledSampler


class Sampler(RuledSampler[mx.array]):
    """A `RuledSampler` on MLX arrays."""

    def ids(self, values: Iterable[int]) -> mx.array:
        return mx.array(list(values), mx.uint32)

    def floats(self, values: Iterable[float]) -> mx.array:
        return mx.array(list(values), mx.float32)

    def bits(self, packed: bytes) -> mx.array:
        octets = mx.array(np.frombuffer(packed, np.uint8))[:, None]
        flags = (octets >> mx.arange(8, dtype=mx.uint8)) & 1
        return flags.reshape(-1)[: self.vocab].astype(mx.bool_)

    def zeros(self, size: int, *, flags: bool = False) -> mx.array:
        return mx.zeros(size, mx.bool_ if flags else mx.float32)

    def float32(self, logits: mx.array) -> mx.array:
        return logits.astype(mx.float32)

    def flag(self, flags: mx.array, ids: mx.array) -> mx.array:
        if ids.size:
            flags[ids] = True
        return flags

    def add(self, scores: mx.array, ids: mx.array, values: mx.array) -> mx.array:
        return scores.at[ids].add(values)

    def ban(self, scores: mx.array, ids: mx.array) -> mx.array:
        return scores.at[ids].add(-mx.inf) if ids.size else scores

    def where(self, condition: mx.array, a: mx.array, b: mx.array | float) -> mx.array:
        return mx.where(condition, a, b)

    def sum(self, x: mx.array) -> mx.array:
        return x.sum(keepdims=True)

    def softmax(self, scores: mx.array) -> mx.array:
        return mx.softmax(scores, axis=-1)

    def logsumexp(self, x: mx.array) -> mx.array:
        """In two levels: on a CPU, one float32 sum over a whole vocabulary is off by 1e-4."""
        rows = mx.pad(x, (0, -x.size % 256), constant_values=-mx.inf).reshape(-1, 256)
        return mx.logsumexp(mx.logsumexp(rows, axis=-1))

    def argmax(self, scores: mx.array) -> mx.array:
        return mx.argmax(scores, keepdims=True)

    def candidates(self, scores: mx.array, k: int) -> tuple[mx.array, mx.array]:
        places = mx.argpartition(scores, kth=scores.size - k)[-k:]
        return scores[places], places

    def largest(self, x: mx.array, k: int) -> tuple[mx.array, mx.array]:
        places = mx.argpartition(-x, kth=k - 1)[:k]
        places = places[mx.argsort(-x[places])]
        return x[places], places

    def least_of_top(self, p: mx.array, top_p: float) -> mx.array:
        descending = -mx.sort(-p)
        before = mx.cumsum(descending) - descending
        return mx.where(before < top_p, descending, mx.inf).min()

    def categorical(self, scores: mx.array, key: int) -> mx.array:
        return mx.random.categorical(scores, key=mx.random.key(key)).reshape(1)

    def fetch(self, arrays: Sequence[mx.array]) -> Fetch:
        mx.async_eval(*arrays)  # type: ignore[no-untyped-call]
        return lambda: [np.asarray(array).tolist() for array in arrays]
