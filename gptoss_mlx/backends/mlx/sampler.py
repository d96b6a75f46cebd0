"""The sampler's operations in MLX. Arrays are lazy: the step after a choice is queued before the
choice is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np

from gptoss_mlx.backends import sampler


class Operations(sampler.Operations[mx.array]):
    """The operations on MLX arrays."""

    def ids(self, values: Iterable[int]) -> mx.array:
        return mx.array(list(values), mx.uint32)

    def floats(self, values: Iterable[float]) -> mx.array:
        return mx.array(list(values), mx.float32)

    def bits(self, packed: bytes) -> mx.array:
        octets = mx.array(np.frombuffer(packed, np.uint8))[:, None]
        flags = (octets >> mx.arange(8, dtype=mx.uint8)) & 1
        return flags.reshape(1, -1)[:, : self.vocab].astype(mx.bool_)

    def zeros(self, size: int, *, flags: bool = False) -> mx.array:
        return mx.zeros((1, size), mx.bool_ if flags else mx.float32)

    def float32(self, logits: mx.array) -> mx.array:
        return logits.astype(mx.float32)

    def joined(self, rows: Sequence[mx.array]) -> mx.array:
        return rows[0] if len(rows) == 1 else mx.concatenate([*rows])

    def flag(self, flags: mx.array, ids: mx.array) -> mx.array:
        if ids.size:
            flags[:, ids] = True
        return flags

    def add(self, scores: mx.array, ids: mx.array, values: mx.array) -> mx.array:
        return scores.at[:, ids].add(values)

    def ban(self, scores: mx.array, ids: mx.array) -> mx.array:
        return scores.at[:, ids].add(-mx.inf) if ids.size else scores

    def columns(self, scores: mx.array, ids: mx.array) -> mx.array:
        return scores[:, ids]

    def take(self, x: mx.array, places: mx.array) -> mx.array:
        return mx.take_along_axis(x, places[:, None], axis=-1).reshape(-1)

    def where(self, condition: mx.array, a: mx.array, b: mx.array | float) -> mx.array:
        return mx.where(condition, a, b)

    def sum(self, x: mx.array) -> mx.array:
        return x.sum(axis=-1)

    def max(self, x: mx.array) -> mx.array:
        return x.max(axis=-1, keepdims=True)

    def softmax(self, scores: mx.array) -> mx.array:
        return mx.softmax(scores, axis=-1)

    def log_softmax(self, x: mx.array) -> mx.array:
        """In two levels: on a CPU, one float32 sum over a whole vocabulary is off by 1e-4."""
        padded = mx.pad(x, [(0, 0), (0, -x.shape[-1] % 256)], constant_values=-mx.inf)
        parts = mx.logsumexp(padded.reshape(x.shape[0], -1, 256), axis=-1)
        return x - mx.logsumexp(parts, axis=-1, keepdims=True)

    def argmax(self, scores: mx.array) -> mx.array:
        return mx.argmax(scores, axis=-1)

    def largest(self, x: mx.array, k: int) -> tuple[mx.array, mx.array]:
        places = mx.argpartition(-x, kth=k - 1, axis=-1)[:, :k]
        order = mx.argsort(-mx.take_along_axis(x, places, axis=-1), axis=-1)
        places = mx.take_along_axis(places, order, axis=-1)
        return mx.take_along_axis(x, places, axis=-1), places

    def least_of_top(self, p: mx.array, top_p: float) -> mx.array:
        descending = -mx.sort(-p, axis=-1)
        before = mx.cumsum(descending, axis=-1) - descending
        return mx.where(before < top_p, descending, mx.inf).min(axis=-1, keepdims=True)

    def categorical(self, scores: mx.array, keys: Sequence[int]) -> mx.array:
        """With a key for each row, which `mx.random` has by vmap only."""
        if len(keys) == 1:  # in one dimension: a fifth faster on a CPU
            key = mx.random.key(keys[0])
            return mx.random.categorical(scores.reshape(-1), key=key).reshape(1)
        pairs = mx.array([divmod(key, 2**32) for key in keys], mx.uint32)  # as mx.random.key's

        def draw(row: mx.array, key: mx.array) -> mx.array:
            return mx.random.categorical(row, key=key)

        return mx.vmap(draw)(scores, pairs)

    def fetch(self, arrays: Sequence[mx.array], views: Sequence[mx.array]) -> sampler.Fetch:
        mx.async_eval(*arrays, *views)  # type: ignore[no-untyped-call]
        return lambda: [np.asarray(array).tolist() for array in arrays]
