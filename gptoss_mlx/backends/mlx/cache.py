"""What a sequence remembers: keys and values of every layer.

A full-attention layer keeps every token in an arena that grows by `GROWTH` tokens at a time, as
computed or, in a `QuantizedArena`, in few bits. A sliding layer keeps the last `window` tokens in a
ring, always as computed: the token at position p lies in slot p % window. `State` holds these for
all layers of one sequence and nothing else, so that several sequences can live side by side.

Tokens come in chunks by `extend`. On a GPU a single token comes in steps, `spot`, `parts`, `put`:
MLX copies a buffer that a step still running reads before it writes into it, so that there the
token is written into a small page, anew each time, and an arena is left alone but for every `PAGE`
tokens.

How a sequence goes back to an earlier position: backends/state.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.attention_quantized import Quantized
from gptoss_mlx.backends.mlx.ops.place import NOWHERE, Place, Spot, anywhere, places
from gptoss_mlx.backends.state import Rewindable
from gptoss_mlx.plan.buffers import GROWTH, PAGE


class Arena:
    """Keys and values of a full-attention layer, contiguous by position.

    Single tokens are collected in a page behind it, which goes into the arena at every PAGE-th
    position; `turn` shifts these positions, so that not all layers copy their arenas in one step.
    """

    def __init__(self, turn: int = 0) -> None:
        self.turn = turn
        self._kv: mx.array | None = None
        self._page: mx.array | None = None
        self._held = 0  # tokens in the arena; the page begins there

    def extend(self, kv: mx.array, offset: int) -> mx.array:
        """Keep the tokens at positions offset, offset + 1, ... and give all that they may see.

        kv [2, kv_heads, tokens, head_dim], keys and then values; so is what is given, with the
        tokens of before.
        """
        self._settle(offset)
        return self._write(kv, offset)[..., : self._held, :]

    def spot(self, offset: int) -> Spot:
        """Where the token at `offset` goes: the arena is made ready for it."""
        if offset < self._held or (offset + self.turn) % PAGE == 0:
            self._settle(offset)
        slot = offset - self._held
        return Spot(self._held, slot, slot + 1)

    def parts(self, like: mx.array) -> tuple[mx.array, mx.array]:
        """The arena and the page that a token is written into; `put` takes the page with it.

        All are [2, kv_heads, tokens, head_dim]; like has the dtype of keys and values.
        """
        if self._kv is None:
            self._kv = _grown(None, like, 0, GROWTH)
        if self._page is None:
            self._page = _empty(like, PAGE)
        return self._kv, self._page

    def put(self, page: mx.array) -> None:
        self._page = page

    def _settle(self, offset: int) -> None:
        """Bring the tokens before `offset` into the arena, and forget those after."""
        if self._page is not None and offset > self._held:
            self._write(self._page[..., : offset - self._held, :], self._held)
        self._held = offset

    def _write(self, kv: mx.array, offset: int) -> mx.array:
        end = offset + kv.shape[2]
        self._kv = _grown(self._kv, kv, offset, end)
        self._kv[..., offset:end, :] = kv
        self._held = end
        return self._kv

    def arrays(self) -> list[mx.array]:
        """The buffers held, to be evaluated."""
        return [a for a in (self._kv, self._page) if a is not None]


class QuantizedArena:
    """An `Arena` in MLX's affine quantization: `bits` a value, in groups along head_dim.

    A token is quantized once, as it comes and by itself: its codes depend on no other token. Each
    group has a scale and a bias in float32; in bfloat16 they would add up to as much error as the
    codes, and be widened again at every step. In 8 bits a head's 64 values take 72 bytes.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._kv: Quantized | None = None

    def extend(self, kv: mx.array, offset: int) -> Quantized:
        """As `Arena.extend`. Raises ValueError where head_dim does not divide into groups."""
        group = kv_group(kv.shape[3])
        new = Quantized(*mx.quantize(kv.astype(mx.float32), group_size=group, bits=self.bits))
        end = offset + kv.shape[2]
        buffers: Sequence[mx.array | None] = self._kv or (None, None, None)
        grown = [_grown(b, n, offset, end) for b, n in zip(buffers, new, strict=True)]
        for buffer, tokens in zip(grown, new, strict=True):
            buffer[..., offset:end, :] = tokens
        self._kv = Quantized(*grown)
        return self._kv.part(0, end)

    def arrays(self) -> list[mx.array]:
        return [*(self._kv or ())]


def kv_group(head_dim: int) -> int:
    """How many values share a scale and a bias. Raises ValueError where none fits head_dim."""
    for size in (64, 32):
        if head_dim % size == 0:
            return size
    raise ValueError(f"head_dim is {head_dim}; only multiples of 32 can be quantized")


def _grown(buffer: mx.array | None, like: mx.array, used: int, need: int) -> mx.array:
    """The buffer itself if `need` tokens fit, else a larger one with the first `used` copied."""
    if buffer is not None and buffer.shape[2] >= need:
        return buffer
    capacity = -(-need // GROWTH) * GROWTH
    both, heads, _, width = like.shape
    room = mx.zeros((both, heads, capacity - used, width), dtype=like.dtype)
    return room if buffer is None else mx.concatenate([buffer[..., :used, :], room], axis=2)


class Ring:
    """Keys and values of a sliding layer: the last `window` tokens.

    A chunk sees up to window - 1 earlier tokens and itself, oldest first. A single token sees the
    ring as it lies: attention does not mind the order, positions were rotated in before.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._kv: mx.array | None = None

    def extend(self, kv: mx.array, offset: int) -> mx.array:
        """As `Arena.extend`."""
        ring = self._kv if self._kv is not None else _empty(kv, self.window)
        if kv.shape[2] == 1:
            slot, filled = offset % self.window, min(offset + 1, self.window)
            ring[..., slot : slot + 1, :] = kv
            self._kv = ring
            return ring[..., :filled, :]
        seen, self._kv = _slide(ring, kv, offset, self.window)
        return seen

    def spot(self, offset: int) -> Spot:
        """As `Arena.spot`."""
        return Spot(0, offset % self.window, min(offset + 1, self.window))

    def parts(self, like: mx.array) -> tuple[mx.array, mx.array]:
        """As `Arena.parts`: the ring is the page, there is no arena."""
        ring = self._kv if self._kv is not None else _empty(like, self.window)
        return ring, ring

    def put(self, page: mx.array) -> None:
        self._kv = page

    def arrays(self) -> list[mx.array]:
        return [] if self._kv is None else [self._kv]

    def hold(self) -> mx.array | None:
        """A copy of the buffer that later tokens leave alone."""
        return _copy(self._kv)

    def put_back(self, held: mx.array | None) -> None:
        self._kv = _copy(held)


def _empty(like: mx.array, tokens: int) -> mx.array:
    both, heads, _, width = like.shape
    return mx.zeros((both, heads, tokens, width), dtype=like.dtype)


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


LayerCache: TypeAlias = Arena | QuantizedArena | Ring


class State(Rewindable[mx.array]):
    """One sequence. kv_bits: what full-attention layers keep a value in; None as computed."""

    def __init__(self, sliding: Sequence[bool], window: int, kv_bits: int | None = None) -> None:
        super().__init__(window)
        full = len(sliding) - sum(sliding)
        turns = (i * PAGE // full for i in range(full))
        self.layers: list[LayerCache] = [
            Ring(window) if s else Arena(turn) if kv_bits is None else QuantizedArena(kv_bits)
            for s, turn in ((s, 0 if s else next(turns)) for s in sliding)
        ]

    def places(self, paged: bool) -> list[Place]:
        """Where the tokens that come next go in each layer. paged: one token, written in pages."""
        if not paged:
            return [anywhere(self.offset)] * len(self.layers)
        spots = (
            NOWHERE if isinstance(layer, QuantizedArena) else layer.spot(self.offset)
            for layer in self.layers
        )
        return places(self.offset, list(spots))

    def hold(self) -> list[mx.array | None]:
        return [ring.hold() for ring in self._rings()]

    def put_back(self, rings: Sequence[mx.array | None]) -> None:
        for ring, held in zip(self._rings(), rings, strict=True):
            ring.put_back(held)

    def _rings(self) -> list[Ring]:
        return [layer for layer in self.layers if isinstance(layer, Ring)]

    def close(self) -> None:
        """Let go of all keys and values; the sequence is gone."""
        self.layers.clear()

    def arrays(self) -> list[mx.array]:
        return [a for layer in self.layers for a in layer.arrays()]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays())
