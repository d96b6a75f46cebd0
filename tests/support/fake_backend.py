"""A third backend, as small as one can be: the engine's tests run on it as on the two real ones.

Its network is no gpt-oss: the logits depend on every token before, and on the age of those in a
ring, so that a token forgotten or a ring put back wrongly changes what is said. What it shares with
the real ones is what they share with each other: the rules of a state and those of the sampler.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.sampler import Fetch, Operations, RuledSampler
from gptoss_mlx.backends.state import Copied, Rewindable
from gptoss_mlx.errors import CapacityError
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.sampling import Sampling

Array: TypeAlias = NDArray[Any]
WIDTH = 32


class FakeState(Rewindable[Array]):
    """A row of `WIDTH` numbers for every token, in a list that keeps all and in a ring."""

    def __init__(self, window: int) -> None:
        super().__init__(window)
        self.rows: list[Array] = []
        self.ring = np.zeros((window, WIDTH), np.float32)

    def append(self, row: Array) -> None:
        self.rows[self.offset :] = [row]
        self.ring[self.offset % self.window] = row
        self.offset += 1

    def seen(self) -> Array:
        """[WIDTH]: the tokens so far; of those in the ring, each by its age."""
        ages = (self.offset - 1 - np.arange(self.window)) % self.window
        weights = np.where(ages < self.offset, np.exp(-0.3 * ages), 0).astype(np.float32)
        return np.tanh(weights @ self.ring + np.mean(self.rows[: self.offset], axis=0) / 5)

    def hold(self) -> Sequence[Array]:
        return [self.ring.copy()]

    def put_back(self, rings: Sequence[Array | None]) -> None:
        (self.ring[:],) = rings

    def part(self, start: int, end: int) -> Sequence[Array]:
        return [np.stack(self.rows[start:end])]

    def fill(self, parts: Sequence[Sequence[Array]]) -> None:
        self.rows = [row for (rows,) in parts for row in rows]

    def close(self) -> None:
        self.rows.clear()

    @property
    def nbytes(self) -> int:
        return self.ring.nbytes + sum(row.nbytes for row in self.rows)


class FakeModel:
    """Random weights, the same at every start."""

    def __init__(self, config: ModelConfig, rows: int, chunk: int = 512) -> None:
        rng = np.random.default_rng(0)
        self.config, self.rows, self.chunk = config, rows, chunk
        self.rejected: Mapping[str, str] = {}
        self.operations = FakeOperations(config.vocab_size)
        self.choose = self.operations.choose
        self.embedding = rng.normal(0, 1, (config.vocab_size, WIDTH)).astype(np.float32)
        self.head = rng.normal(0, 0.4, (WIDTH, config.vocab_size)).astype(np.float32)

    def new_state(self) -> FakeState:
        return FakeState(self.config.sliding_window)

    def restore(self, segments: Sequence[Copied[Array]]) -> FakeState:
        state = self.new_state()
        state.restore(segments)
        return state

    def layout(self, tokens: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        window = self.config.sliding_window
        return {"rows": ("F32", (tokens, WIDTH)), "ring": ("F32", (window, WIDTH))}

    def to_host(self, segment: Copied[Array]) -> list[NDArray[np.uint8]]:
        return [array.reshape(-1).view(np.uint8) for array in segment.arrays]

    def from_host(self, start: int, end: int, data: Sequence[NDArray[np.uint8]]) -> Copied[Array]:
        rows, ring = (array.view(np.float32).reshape(-1, WIDTH) for array in data)
        return Copied(start, end, (rows,), (ring,), ahead=True)

    def prefill(self, ids: Sequence[int], state: FakeState) -> None:
        for id in ids:
            state.append(self.embedding[id])

    def evaluate(self, ids: Sequence[int], state: FakeState) -> NDArray[np.float32]:
        seen = []
        for id in ids:
            state.append(self.embedding[id])
            seen.append(state.seen())
        return np.stack(seen) @ self.head

    def decode(self, tokens: Sequence[Sequence[int] | Array], states: Sequence[FakeState]) -> Array:
        if len(states) > self.rows:
            raise CapacityError(f"{len(states)} sequences on {self.rows} rows")
        for token, state in zip(tokens, states, strict=True):
            state.append(self.embedding[int(token[0])])
        return np.stack([state.seen() @ self.head for state in states])

    def sampler(self, options: Sampling, seed: int, prompt: Sequence[int]) -> RuledSampler[Array]:
        return RuledSampler(self.operations, options, seed, prompt)

    def stats(self) -> dict[str, float]:
        return dict.fromkeys(("active_bytes", "peak_bytes", "cache_bytes"), self.head.nbytes)


class FakeOperations(Operations[Array]):
    """The sampler's operations in numpy."""

    def ids(self, values: Iterable[int]) -> Array:
        return np.array(list(values), np.int64)

    def floats(self, values: Iterable[float]) -> Array:
        return np.array(list(values), np.float32)

    def bits(self, packed: bytes) -> Array:
        flags = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little") > 0
        return flags[None, : self.vocab]

    def zeros(self, size: int, *, flags: bool = False) -> Array:
        return np.zeros((1, size), bool if flags else np.float32)

    def float32(self, logits: Array) -> Array:
        return logits.astype(np.float32)

    def joined(self, rows: Sequence[Array]) -> Array:
        return np.concatenate(rows)

    def flag(self, flags: Array, ids: Array) -> Array:
        flags[:, ids] = True
        return flags

    def add(self, scores: Array, ids: Array, values: Array) -> Array:
        scores = scores.copy()
        scores[:, ids] += values
        return scores

    def ban(self, scores: Array, ids: Array) -> Array:
        scores = scores.copy()
        scores[:, ids] = -np.inf
        return scores

    def columns(self, scores: Array, ids: Array) -> Array:
        return scores[:, ids]

    def take(self, x: Array, places: Array) -> Array:
        return x[np.arange(len(x)), places]

    def where(self, condition: Array, a: Array, b: Array | float) -> Array:
        return np.where(condition, a, b)

    def sum(self, x: Array) -> Array:
        return x.sum(-1)

    def max(self, x: Array) -> Array:
        return x.max(-1, keepdims=True)

    def softmax(self, scores: Array) -> Array:
        p = np.exp(scores - self.max(scores))
        return p / p.sum(-1, keepdims=True)

    def log_softmax(self, x: Array) -> Array:
        x = x - self.max(x)
        return x - np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True))

    def argmax(self, scores: Array) -> Array:
        return scores.argmax(-1)

    def largest(self, x: Array, k: int) -> tuple[Array, Array]:
        places = np.argsort(-x, axis=-1, kind="stable")[:, :k]
        return np.take_along_axis(x, places, -1), places

    def least_of_top(self, p: Array, top_p: float) -> Array:
        descending = -np.sort(-p)
        before = np.cumsum(descending, axis=-1) - descending
        return np.where(before < top_p, descending, np.inf).min(-1, keepdims=True)

    def categorical(self, scores: Array, keys: Sequence[int]) -> Array:
        times = [np.random.default_rng(key).exponential(size=scores[0].shape) for key in keys]
        return self.argmax(scores - np.log(times))

    def fetch(self, arrays: Sequence[Array], views: Sequence[Array]) -> Fetch:
        return lambda: [array.tolist() for array in arrays]
