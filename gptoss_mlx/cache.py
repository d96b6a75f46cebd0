"""What a sequence remembers: keys and values of every layer.

A full-attention layer keeps every token in an arena that grows by `GROWTH` tokens at a time.
A sliding layer keeps the last `window` tokens in a ring: the token at position p lies in slot
p % window. `State` holds both for all layers of one sequence and nothing else, so that several
sequences can live side by side.

The arena can forget its newest tokens at any time; a ring cannot, since it has overwritten what
lay before them. `State.snapshot` therefore keeps the rings (they are small) and the position;
`State.restore` puts the rings back and cuts the arenas: exact, and free but for the rings' bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from gptoss_mlx.buffers import GROWTH


class LayerCache(Protocol):
    """The keys and values of one layer; k and v are [1, kv_heads, tokens, head_dim]."""

    def extend(self, k: mx.array, v: mx.array, offset: int) -> tuple[mx.array, mx.array]:
        """Keep the tokens at positions offset, offset + 1, ... and give all that they may see."""

    def arrays(self) -> list[mx.array]:
        """The buffers held, to be evaluated."""


class Arena:
    """Keys and values of a full-attention layer, contiguous by position."""

    def __init__(self) -> None:
        self._keys: mx.array | None = None
        self._values: mx.array | None = None

    def extend(self, k: mx.array, v: mx.array, offset: int) -> tuple[mx.array, mx.array]:
        end = offset + k.shape[2]
        self._keys = _grown(self._keys, k, offset, end)
        self._values = _grown(self._values, v, offset, end)
        self._keys[..., offset:end, :] = k
        self._values[..., offset:end, :] = v
        return self._keys[..., :end, :], self._values[..., :end, :]

    def arrays(self) -> list[mx.array]:
        return [a for a in (self._keys, self._values) if a is not None]


def _grown(buffer: mx.array | None, like: mx.array, used: int, need: int) -> mx.array:
    """The buffer itself if `need` tokens fit, else a larger one with the first `used` copied."""
    if buffer is not None and buffer.shape[2] >= need:
        return buffer
    capacity = -(-need // GROWTH) * GROWTH
    batch, heads, _, width = like.shape
    room = mx.zeros((batch, heads, capacity - used, width), dtype=like.dtype)
    return room if buffer is None else mx.concatenate([buffer[..., :used, :], room], axis=2)


class Ring:
    """Keys and values of a sliding layer: the last `window` tokens.

    A chunk sees up to window - 1 earlier tokens and itself, oldest first. A single token sees the
    ring as it lies: attention does not mind the order, positions were rotated in before.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._keys: mx.array | None = None
        self._values: mx.array | None = None

    def extend(self, k: mx.array, v: mx.array, offset: int) -> tuple[mx.array, mx.array]:
        keys = self._keys if self._keys is not None else _empty(k, self.window)
        values = self._values if self._values is not None else _empty(v, self.window)
        if k.shape[2] == 1:
            slot, filled = offset % self.window, min(offset + 1, self.window)
            keys[..., slot : slot + 1, :] = k
            values[..., slot : slot + 1, :] = v
            self._keys, self._values = keys, values
            return keys[..., :filled, :], values[..., :filled, :]
        seen_k, self._keys = _slide(keys, k, offset, self.window)
        seen_v, self._values = _slide(values, v, offset, self.window)
        return seen_k, seen_v

    def arrays(self) -> list[mx.array]:
        return [a for a in (self._keys, self._values) if a is not None]

    def hold(self) -> tuple[mx.array | None, mx.array | None]:
        """Copies of the buffers that later tokens leave alone."""
        return _copy(self._keys), _copy(self._values)

    def put_back(self, held: tuple[mx.array | None, mx.array | None]) -> None:
        self._keys, self._values = _copy(held[0]), _copy(held[1])


def _empty(like: mx.array, window: int) -> mx.array:
    batch, heads, _, width = like.shape
    return mx.zeros((batch, heads, window, width), dtype=like.dtype)


def _copy(a: mx.array | None) -> mx.array | None:
    # A new handle on the same value: an indexed assignment rebinds only the handle it is made on.
    return None if a is None else mx.array(a)


def _slide(ring: mx.array, new: mx.array, offset: int, window: int) -> tuple[mx.array, mx.array]:
    """(what a chunk at `offset` sees, the ring after it)."""
    start = offset % window
    if offset < window:
        earlier = ring[..., :offset, :]
    else:
        earlier = mx.concatenate([ring[..., start:, :], ring[..., :start, :]], axis=2)
    seen = mx.concatenate([earlier[..., max(0, earlier.shape[2] - window + 1) :, :], new], axis=2)
    end = offset + new.shape[2]
    if end < window:
        return seen, mx.concatenate([seen, ring[..., end:, :]], axis=2)
    last = mx.concatenate([earlier, new], axis=2)[..., -window:, :]
    cut = window - end % window
    return seen, mx.concatenate([last[..., cut:, :], last[..., :cut, :]], axis=2)


@dataclass(frozen=True)
class Snapshot:
    """A sequence's state at one position; valid while its first `offset` tokens stay the same."""

    offset: int
    rings: tuple[tuple[mx.array | None, mx.array | None], ...]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for pair in self.rings for a in pair if a is not None)


class State:
    """One sequence: `offset` tokens are in it, the next one has position `offset`."""

    def __init__(self, sliding: Sequence[bool], window: int) -> None:
        self.offset = 0
        self.window = window
        self.layers: list[Arena | Ring] = [Ring(window) if s else Arena() for s in sliding]

    def snapshot(self) -> Snapshot:
        rings = (layer for layer in self.layers if isinstance(layer, Ring))
        return Snapshot(self.offset, tuple(ring.hold() for ring in rings))

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this sequence.

        Raises ValueError if the sequence is shorter than the snapshot.
        """
        if snapshot.offset > self.offset:
            raise ValueError(f"snapshot at {snapshot.offset}, but the state ends at {self.offset}")
        rings = (layer for layer in self.layers if isinstance(layer, Ring))
        for ring, held in zip(rings, snapshot.rings, strict=True):
            ring.put_back(held)
        self.offset = snapshot.offset

    def can_trim(self, offset: int) -> bool:
        """Whether `trim(offset)` is possible: nothing has been overwritten in the rings yet."""
        return offset == self.offset or (0 <= offset < self.offset <= self.window)

    def trim(self, offset: int) -> None:
        """Forget all tokens from `offset` on.

        Raises ValueError where a ring has overwritten what lay before: restore a snapshot instead.
        """
        if not self.can_trim(offset):
            raise ValueError(
                f"cannot go back from {self.offset} to {offset}: rings hold {self.window} tokens"
            )
        self.offset = offset

    def arrays(self) -> list[mx.array]:
        return [a for layer in self.layers for a in layer.arrays()]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays())
