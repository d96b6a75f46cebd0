"""A model in pure Python that only remembers: what a sequence's state really holds.

Its state is that of backends/mlx/cache.py with tokens in place of keys: an arena that keeps
everything and a ring that has overwritten what is older than its window. `held` fails where a
token would see another than it should.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.protocol import Draw
from gptoss_mlx.spec.sampling import Sampling

EMPTY = (1 << 32) - 1


@dataclass(frozen=True)
class RingSnapshot:
    state: RingState
    offset: int
    ring: tuple[Any, ...]
    short: int | None = None

    def restore(self) -> None:
        assert self.offset <= self.state.offset
        self.state.ring[:] = self.ring
        self.state.offset, self.state.short = self.offset, self.short
        self.state.moves.append(("restore", self.offset))

    @property
    def nbytes(self) -> int:
        return len(self.ring)


@dataclass(frozen=True)
class RingSegment:
    start: int
    end: int
    arena: tuple[Any, ...]
    ring: tuple[Any, ...]
    short: int | None

    @property
    def nbytes(self) -> int:
        return 4 * (len(self.arena) + len(self.ring))


class RingState:
    """One sequence; a snapshot of it takes `window` bytes.

    short: the offset at which a token was forgotten that has overwritten another.
    """

    def __init__(self, window: int) -> None:
        self.offset = 0
        self.arena: list[Any] = []
        self.ring: list[Any] = [None] * window
        self.moves: list[tuple[str, int]] = []  # trims and restores
        self.short: int | None = None
        self.closed = False

    def append(self, token: Any) -> None:
        assert not self.closed
        self.arena[self.offset : self.offset + 1] = [token]
        self.ring[self.offset % len(self.ring)] = token
        self.offset += 1
        self.check(len(self.ring))

    def held(self) -> list[Any]:
        """The tokens the sequence consists of; arena and ring must agree about them."""
        assert len(self.arena) >= self.offset
        self.check(len(self.ring) - 1)
        return self.arena[: self.offset]

    def check(self, seen: int) -> None:
        """The ring holds the last tokens that the newest or the next one sees."""
        for position in range(max(0, self.offset - seen), self.offset):
            assert self.ring[position % len(self.ring)] == self.arena[position], "a stale ring"

    def snapshot(self, back: int = 0) -> RingSnapshot:
        offset = self.offset - back
        assert self.can_trim(offset)
        short = offset if back and self.offset > len(self.ring) else self.short
        return RingSnapshot(self, offset, tuple(self.ring), short)

    def segment(self, start: int, snapshot: RingSnapshot) -> RingSegment:
        assert snapshot.state is self
        assert not self.closed
        end = snapshot.offset
        assert 0 <= start < end <= self.offset
        return RingSegment(start, end, tuple(self.arena[start:end]), snapshot.ring, snapshot.short)

    def recall(self, segment: RingSegment) -> RingSnapshot:
        return RingSnapshot(self, segment.end, segment.ring, segment.short)

    def can_trim(self, offset: int) -> bool:
        assert not self.closed
        if offset == self.offset:
            return True
        fresh = 0 <= offset < self.offset != self.short
        return fresh and (self.offset <= len(self.ring) or offset == self.offset - 1)

    def trim(self, offset: int) -> None:
        assert self.can_trim(offset)
        self.moves.append(("trim", offset))
        if offset < self.offset > len(self.ring):
            self.short = offset
        self.offset = offset

    def close(self) -> None:
        self.closed = True
        self.moves.append(("close", self.offset))

    @property
    def nbytes(self) -> int:
        return len(self.arena)


def _id(token: Any) -> int:
    """A token as a number, also one that was on its way; of an empty place, one that is none."""
    return EMPTY if token is None else int(getattr(token, "id", token))


class RingModel:
    """Gives what `predict` makes of the tokens so far; appends them to `log` as they come."""

    def __init__(
        self,
        window: int = 8,
        chunk: int = 4,
        predict: Callable[[list[Any]], Any] = lambda tokens: 0,
        sampler: Callable[[Sampling, int, Sequence[int]], Any] = lambda *asked: None,
    ) -> None:
        self.window, self.chunk, self.predict, self.sampler = window, chunk, predict, sampler
        self.rejected: dict[str, str] = {}
        self.rows, self.together = 3, list[int]()  # sequences in each joint step
        self.states: list[RingState] = []
        self.log: list[tuple[str, list[Any]]] = []

    def new_state(self) -> RingState:
        state = RingState(self.window)
        self.states.append(state)
        return state

    def restore(self, segments: Sequence[RingSegment]) -> RingState:
        state = self.new_state()
        for segment in segments:
            assert segment.start == state.offset
            state.arena += segment.arena
            state.offset = segment.end
        state.ring[:], state.short = segments[-1].ring, segments[-1].short
        return state

    def layout(self, tokens: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"arena": ("U32", (tokens,)), "ring": ("U32", (self.window,))}

    def to_host(self, segment: RingSegment) -> list[NDArray[np.uint8]]:
        ids = [[_id(token) for token in part] for part in (segment.arena, segment.ring)]
        return [np.array(part, np.uint32).view(np.uint8) for part in ids]

    def from_host(self, start: int, end: int, arrays: Sequence[NDArray[np.uint8]]) -> RingSegment:
        arena, ring = (tuple(data.view(np.uint32).tolist()) for data in arrays)
        return RingSegment(start, end, arena, ring, short=end)

    def prefill(self, ids: Sequence[int], state: RingState) -> None:
        assert 0 < len(ids) <= self.chunk
        self.log.append(("prefill", list(ids)))
        for id in ids:
            state.append(id)

    def decode(self, tokens: Sequence[Any], states: Sequence[RingState]) -> list[Any]:
        """A token is [id], or whatever stands for one that is still on its way."""
        assert len(states) <= self.rows
        self.together.append(len(states))
        return [self._decode_one(token, state) for token, state in zip(tokens, states, strict=True)]

    def _decode_one(self, token: Any, state: RingState) -> Any:
        one = list(token) if isinstance(token, Sequence) else [token]
        assert len(one) == 1
        self.log.append(("decode", one))
        state.append(one[0])
        return self.predict(state.held())

    def choose(self, logits: Sequence[Any], draws: Sequence[Draw[Any]]) -> list[Any]:
        """By the samplers, one after the other."""
        return [sampler.choose(logits[row], step, mask) for row, sampler, step, mask in draws]

    def evaluate(self, ids: Sequence[int], state: RingState) -> Any:
        raise NotImplementedError

    def stats(self) -> dict[str, float]:
        return {"active_bytes": 1, "peak_bytes": 2, "cache_bytes": 3}
