"""The KV cache of one sequence: keys and values of every layer.

A full-attention layer keeps every token in an arena, a buffer contiguous by position that grows by
`GROWTH` tokens at a time; a `QuantizedArena` keeps it quantized. A sliding layer keeps the last
`window` tokens in a ring buffer, in the compute dtype: the token at position p lies in slot
p % window. `State` holds the caches of all layers of one sequence and nothing else, so that several
sequences can live side by side.

A chunk of tokens is appended by `extend`. On a GPU a single token is appended in steps: `spot` says
where it goes, `arena` and `page` are what it joins, `put` takes back the page that has it. MLX
copies a buffer before it writes into it while a step still running reads it. So the token is
written into a small page, a new array each time, and the arena only at every `PAGE`-th token. The
pages of sequences that are decoded together are the rows of one array (pages.py), so that one
kernel writes them all; as long as the same sequences go on together they stay so.

How a sequence goes back to an earlier position: backends/state.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.attention_quantized import Quantized
from gptoss_mlx.backends.mlx.ops.place import NOWHERE, Spot
from gptoss_mlx.backends.mlx.pages import Row
from gptoss_mlx.backends.state import Rewindable
from gptoss_mlx.plan.buffers import GROWTH, PAGE


class Arena:
    """Keys and values of a full-attention layer, contiguous by position.

    Single tokens are collected in a page behind the arena, which is copied into it at every
    PAGE-th position. `stagger` shifts these positions by so many tokens, so that not all layers
    write, and so copy, their arenas in one step.
    """

    def __init__(self, stagger: int = 0) -> None:
        self.stagger = stagger
        self._kv: mx.array | None = None
        self._page: Row | None = None
        self._held = 0  # tokens in the arena; the page begins there

    def extend(self, kv: mx.array, offset: int) -> mx.array:
        """Append the tokens at positions offset, offset + 1, ... and return all they attend to.

        kv [2, kv_heads, tokens, head_dim], keys and then values; so is the result, which has the
        earlier tokens first.
        """
        self._settle(offset)
        return self._write(kv, offset)[..., : self._held, :]

    def spot(self, offset: int) -> Spot:
        """Where the token at `offset` is written; makes the arena and the page ready for it."""
        if offset < self._held or (offset + self.stagger) % PAGE == 0:
            self._settle(offset)
        slot = offset - self._held
        return Spot(self._held, slot, slot + 1)

    def arena(self, like: mx.array) -> mx.array:
        """[2, kv_heads, any, head_dim]. like: any such array of the dtype."""
        if self._kv is None:
            self._kv = _grown(None, like, 0, GROWTH)
        return self._kv

    def page(self, like: mx.array) -> Row:
        """The page that a token is written into, [2, kv_heads, PAGE, head_dim]."""
        if self._page is None:
            self._page = Row(_empty(like, PAGE)[None], 0)
        return self._page

    def put(self, page: Row) -> None:
        """Take the page that has the token."""
        self._page = page

    def leave(self) -> None:
        """Keep no other sequence's page."""
        if self._page is not None:
            self._page = self._page.alone()

    def _settle(self, offset: int) -> None:
        """Copy the page's tokens before `offset` into the arena, and forget those from it on."""
        if self._page is not None and offset > self._held:
            self._write(self._page.page[..., : offset - self._held, :], self._held)
        self._held = offset

    def _write(self, kv: mx.array, offset: int) -> mx.array:
        end = offset + kv.shape[2]
        self._kv = _grown(self._kv, kv, offset, end)
        self._kv[..., offset:end, :] = kv
        self._held = end
        return self._kv

    def part(self, start: int, end: int, offset: int) -> tuple[mx.array, ...]:
        """The tokens from start to end, of a sequence of `offset`."""
        self._settle(offset)
        assert self._kv is not None
        return (self._kv[..., start:end, :],)

    def fill(self, parts: Sequence[tuple[mx.array, ...]]) -> None:
        """Hold what `part` gave, one after another."""
        (kv,) = zip(*parts, strict=True)
        self._kv, self._held = _joined(kv)

    def arrays(self) -> list[mx.array]:
        """The buffers held, for `mx.eval`."""
        page = [] if self._page is None else [self._page.pages]
        return page if self._kv is None else [self._kv, *page]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self._kv, self._page) if a is not None)


class QuantizedArena:
    """An `Arena` in MLX's affine quantization: `bits` a value, in groups along head_dim.

    A token is quantized once, when it is appended: its codes depend on no other token. Each group
    has a float32 scale and bias; in bfloat16 they would add as much error as the codes do, and
    would have to be widened at every step. In 8 bits a head's 64 values take 72 bytes.
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

    def part(self, start: int, end: int, offset: int) -> tuple[mx.array, ...]:
        """As `Arena.part`: codes, scales and biases."""
        assert self._kv is not None
        return tuple(array[..., start:end, :] for array in self._kv)

    def fill(self, parts: Sequence[tuple[mx.array, ...]]) -> None:
        """As `Arena.fill`."""
        self._kv = Quantized(*(_joined(arrays)[0] for arrays in zip(*parts, strict=True)))

    def leave(self) -> None:
        """As `Arena.leave`: there are no pages."""

    def arrays(self) -> list[mx.array]:
        return [*(self._kv or ())]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays())


def kv_group(head_dim: int) -> int:
    """The group size: values that share a scale and a bias. Raises ValueError if none fits."""
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


def _joined(parts: Sequence[mx.array]) -> tuple[mx.array, int]:
    """A buffer with these tokens one after another, and their number."""
    tokens = sum(part.shape[2] for part in parts)
    room = _empty(parts[0], -tokens % GROWTH)
    return mx.concatenate([*parts, room], axis=2), tokens


class Ring:
    """Ring buffer of a sliding layer's keys and values: the last `window` tokens.

    A chunk attends to up to window - 1 earlier tokens and to itself, oldest first. A single token
    attends to the ring in slot order: the order does not matter, since RoPE is already applied.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._ring: Row | None = None

    def extend(self, kv: mx.array, offset: int) -> mx.array:
        """As `Arena.extend`."""
        rings, at = self.page(kv)
        if kv.shape[2] == 1:
            slot, filled = offset % self.window, min(offset + 1, self.window)
            rings[at, ..., slot : slot + 1, :] = kv
            return rings[at, ..., :filled, :]
        seen, ring = _slide(rings[at], kv, offset, self.window)
        self._ring = Row(ring[None], 0)
        return seen

    def spot(self, offset: int) -> Spot:
        """As `Arena.spot`."""
        return Spot(0, offset % self.window, min(offset + 1, self.window))

    def arena(self, like: mx.array) -> mx.array:
        """As `Arena.arena`; no token is read from it."""
        return self.page(like).pages

    def page(self, like: mx.array) -> Row:
        """As `Arena.page`: the ring."""
        if self._ring is None:
            self._ring = Row(_empty(like, self.window)[None], 0)
        return self._ring

    def put(self, page: Row) -> None:
        """As `Arena.put`."""
        self._ring = page

    def leave(self) -> None:
        """As `Arena.leave`."""
        if self._ring is not None:
            self._ring = self._ring.alone()

    def arrays(self) -> list[mx.array]:
        return [] if self._ring is None else [self._ring.pages]

    @property
    def nbytes(self) -> int:
        return 0 if self._ring is None else self._ring.nbytes

    def hold(self) -> mx.array | None:
        """A copy of the ring, for a snapshot: later tokens do not change it."""
        return None if self._ring is None else _copy(self._ring.alone().pages)

    def put_back(self, held: mx.array | None) -> None:
        self._ring = None if held is None else Row(_copy(held), 0)


def _empty(like: mx.array, tokens: int) -> mx.array:
    both, heads, _, width = like.shape
    return mx.zeros((both, heads, tokens, width), dtype=like.dtype)


def _copy(a: mx.array) -> mx.array:
    # A new handle on the same value: an indexed assignment rebinds only the handle it is made on.
    return mx.array(a)


def _slide(ring: mx.array, new: mx.array, offset: int, window: int) -> tuple[mx.array, mx.array]:
    """(keys and values that a chunk at `offset` attends to, the ring after the chunk)."""
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
    """The KV cache of one sequence.

    sliding: of each layer, whether it is a sliding one. window: tokens of a ring.
    kv_bits: bits of a value in full-attention layers; None keeps the compute dtype.
    """

    def __init__(self, sliding: Sequence[bool], window: int, kv_bits: int | None = None) -> None:
        super().__init__(window)
        full = len(sliding) - sum(sliding)
        staggers = (i * PAGE // full for i in range(full))
        self.layers: list[LayerCache] = [
            Ring(window) if s else Arena(stagger) if kv_bits is None else QuantizedArena(kv_bits)
            for s, stagger in ((s, 0 if s else next(staggers)) for s in sliding)
        ]

    def spots(self) -> list[Spot]:
        """Where the next token is written in each layer, where tokens are written into pages."""
        return [
            NOWHERE if isinstance(layer, QuantizedArena) else layer.spot(self.offset)
            for layer in self.layers
        ]

    def leave(self) -> None:
        """Keep no pages of the sequences that were decoded together with this one."""
        for layer in self.layers:
            layer.leave()

    def hold(self) -> list[mx.array | None]:
        held = [ring.hold() for ring in self._rings()]
        # What is computed later may be so on another thread, which has not this one's stream.
        mx.eval([ring for ring in held if ring is not None])
        return held

    def put_back(self, rings: Sequence[mx.array | None]) -> None:
        for ring, held in zip(self._rings(), rings, strict=True):
            ring.put_back(held)
        mx.eval(self.arrays())  # as above

    def part(self, start: int, end: int) -> list[mx.array]:
        parts = [layer.part(start, end, self.offset) for layer in self._arenas()]
        # Stacked, and so copied: a slice would keep the whole arena in memory.
        copies = [mx.contiguous(mx.stack(list(arrays))) for arrays in zip(*parts, strict=True)]
        mx.eval(copies)
        return copies

    def fill(self, parts: Sequence[Sequence[mx.array]]) -> None:
        for i, arena in enumerate(self._arenas()):
            arena.fill([tuple(array[i] for array in arrays) for arrays in parts])
        mx.eval(self.arrays())

    def _arenas(self) -> list[Arena | QuantizedArena]:
        return [layer for layer in self.layers if not isinstance(layer, Ring)]

    def _rings(self) -> list[Ring]:
        return [layer for layer in self.layers if isinstance(layer, Ring)]

    def close(self) -> None:
        """Free all keys and values; the sequence is gone."""
        self.layers.clear()

    def arrays(self) -> list[mx.array]:
        return [a for layer in self.layers for a in layer.arrays()]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)
