"""The sampler's operations in numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from gptoss_mlx.backends import sampler
from gptoss_mlx.backends.protocol import Draw
from gptoss_mlx.spec.sampling import WORD

Array: TypeAlias = Any
"""A numpy array. numpy's own types say Any of most of what its operations return."""


class Operations(sampler.Operations[Array]):
    """The operations on arrays."""

    def finite_check(self, x: Array) -> Array:
        """As for all backends, without an array of the scores' size."""
        least, most = x.min(axis=-1), x.max(axis=-1)
        return (least - least) + (most - most)

    def choose(
        self, logits: Array, draws: Sequence[Draw[sampler.RuledSampler[Array]]]
    ) -> Sequence[sampler.SampledChoice[Array]]:
        """As for all backends. What is not finite is reported when a choice is read."""
        with np.errstate(all="ignore"):
            return super().choose(logits, draws)

    def ids(self, values: Iterable[int]) -> Array:
        return np.array(list(values), np.int64)

    def floats(self, values: Iterable[float]) -> Array:
        return np.array(list(values), np.float32)

    def bits(self, packed: bytes) -> Array:
        flags = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        return flags[None, : self.vocab].view(bool)

    def zeros(self, size: int, *, flags: bool = False) -> Array:
        return np.zeros((1, size), bool if flags else np.float32)

    def float32(self, logits: Array) -> Array:
        return logits

    def joined(self, rows: Sequence[Array]) -> Array:
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def flag(self, flags: Array, ids: Array) -> Array:
        flags[:, ids] = True
        return flags

    def add(self, scores: Array, ids: Array, values: Array) -> Array:
        added = scores.copy()
        added[:, ids] += values
        return added

    def ban(self, scores: Array, ids: Array) -> Array:
        allowed = scores.copy()
        allowed[:, ids] = -np.inf
        return allowed

    def columns(self, scores: Array, ids: Array) -> Array:
        return scores[:, ids]

    def take(self, x: Array, places: Array) -> Array:
        return x[np.arange(len(x)), places]

    def where(self, condition: Array, a: Array, b: Array | float) -> Array:
        return np.where(condition, a, np.float32(b) if isinstance(b, (int, float)) else b)

    def sum(self, x: Array) -> Array:
        return x.sum(axis=-1)

    def max(self, x: Array) -> Array:
        return x.max(axis=-1, keepdims=True)

    def softmax(self, scores: Array) -> Array:
        p = np.exp(scores - self.max(scores))
        return p / p.sum(axis=-1, keepdims=True)

    def log_softmax(self, x: Array) -> Array:
        """Summed in float64."""
        shifted = x - self.max(x)
        return shifted - np.log(np.exp(shifted, dtype=np.float64).sum(axis=-1, keepdims=True))

    def argmax(self, scores: Array) -> Array:
        return scores.argmax(axis=-1)

    def largest(self, x: Array, k: int) -> tuple[Array, Array]:
        """Of equal values the first: those above the k-th largest, and then as many as are missing
        of those that equal it."""
        chosen = [_largest(row, k) for row in x]
        places = np.stack(chosen)
        return np.take_along_axis(x, places, -1), places

    def least_of_top(self, p: Array, top_p: float) -> Array:
        descending = -np.sort(-p, axis=-1)
        before = np.cumsum(descending, axis=-1, dtype=np.float64) - descending
        return np.where(before < top_p, descending, np.inf).min(axis=-1, keepdims=True)

    def categorical(self, scores: Array, keys: Sequence[int]) -> Array:
        """By the Gumbel-max trick in its exponential form: the place of the largest score less the
        logarithm of an exponentially distributed number."""
        rows = zip(scores, keys, strict=True)
        return np.array([_drawn(row, key) for row, key in rows], np.int64)

    def fetch(self, arrays: Sequence[Array], views: Sequence[Array]) -> sampler.Fetch:
        return lambda: [array.tolist() for array in arrays]


def _largest(row: Array, k: int) -> Array:
    if k == len(row):
        return np.argsort(-row, kind="stable")
    least = np.partition(row, len(row) - k)[len(row) - k]
    above = np.flatnonzero(row > least)
    places = np.concatenate([above, np.flatnonzero(row == least)[: k - len(above)]])
    places.sort()
    return places[np.argsort(-row[places], kind="stable")]


def _drawn(scores: Array, key: int) -> int:
    """The place of one draw. Places at minus infinity have no chance and draw no number."""
    possible = np.flatnonzero(scores > -np.inf)
    if not len(possible):  # of logits that are no numbers, which is reported when they are read
        return 0
    generator = np.random.Generator(np.random.PCG64(key & WORD))
    times = generator.standard_exponential(len(scores))[possible]
    return int(possible[np.argmax(scores[possible] - np.log(times))])
