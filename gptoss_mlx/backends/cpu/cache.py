"""The KV cache of one sequence: keys and values of every layer, in pages that the kernels read.

A full-attention layer keeps every token; its pages of `PAGE` tokens are allocated as the sequence
grows, those of all layers together, and never move. A sliding layer keeps the last `window` tokens
in a ring buffer, one page: the token at position p lies at place p % window.

A page has keys [kv_heads, head_dim, places] and values [kv_heads, places, width], so that a vector
of scores is of as many keys, and a vector of the result of as many of a head's values. In 8 bits
each head's key and value has a float32 scale and bias, [4, kv_heads, places] behind them.

How a sequence goes back to an earlier position: backends/state.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.state import Rewindable
from gptoss_mlx.plan.cpu_buffers import PAGE, page_bytes
from gptoss_mlx.spec.config import ModelConfig

Array: TypeAlias = NDArray[Any]

EVERYTHING = 1 << 40
"""The window of a layer without one."""

_STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
}
_NUMBERS = 4  # scales and biases of a key and a value in 8 bits


@dataclass(frozen=True)
class Pages:
    """The format of pages of `places` tokens in one layer. type: "float32", "bfloat16", "uint8"."""

    kv_heads: int
    head_dim: int
    type: str
    places: int

    @property
    def width(self) -> int:
        """Values of a head in a page, padded."""
        return -(-self.head_dim // library.ALIGNED) * library.ALIGNED

    @property
    def nbytes(self) -> int:
        return page_bytes(self.kv_heads, self.head_dim, self.type, self.places)

    def shape(self, heads: int) -> library.Shape:
        """As the kernels take it. heads: query heads."""
        return library.Shape(
            heads, self.kv_heads, self.head_dim, library.KEY_TYPES[self.type], self.places
        )

    def parts(self, pages: Array) -> list[Array]:
        """The arrays in pages uint8 [n, nbytes]: keys [n, kv_heads, head_dim, places], values
        [n, kv_heads, places, width], and in 8 bits scales and biases [n, 4, kv_heads, places]."""
        dtype, count = _STORED[self.type], len(pages)
        dtypes: list[np.dtype[Any]] = [dtype, dtype]
        shapes = [
            (self.kv_heads, self.head_dim, self.places),
            (self.kv_heads, self.places, self.width),
        ]
        if self.type == "uint8":
            shapes.append((_NUMBERS, self.kv_heads, self.places))
            dtypes.append(np.dtype("<f4"))
        found, at = [], 0
        for shape, kind in zip(shapes, dtypes, strict=True):
            end = at + prod(shape) * kind.itemsize
            found.append(pages[:, at:end].view(kind).reshape(count, *shape))
            at = end
        return found


TOKENS = (-1, -2, -1)
"""Of each of a page's arrays, which axis is that of its places."""


def between(array: Array, axis: int, start: int, end: int) -> Array:
    """A view of places start to end."""
    return array[..., start:end] if axis == -1 else array[..., start:end, :]


@dataclass(frozen=True)
class Layers:
    """What the caches of one model have in common. full, sliding: numbers of the layers."""

    full: tuple[int, ...]
    sliding: tuple[int, ...]
    pages: Pages
    ring: Pages
    window: int

    @classmethod
    def of(cls, config: ModelConfig, dtype: str, kv_bits: int | None) -> Layers:
        """dtype: of the keys and values, in full-attention layers unless kv_bits is 8."""
        layers = range(config.num_hidden_layers)
        sliding = tuple(i for i in layers if config.is_sliding(i))
        full = tuple(i for i in layers if not config.is_sliding(i))
        heads, dim, window = config.num_key_value_heads, config.head_dim, config.sliding_window
        pages = Pages(heads, dim, "uint8" if kv_bits else dtype, PAGE)
        places = -(-window // library.ALIGNED) * library.ALIGNED
        return cls(full, sliding, pages, Pages(heads, dim, dtype, places), window)


class State(Rewindable[Array]):
    """The KV cache of one sequence.

    rings uint8 [sliding layers, nbytes]. pointers int64 [layers]: where the addresses of each
    layer's pages lie; after `reserve`, until the next.
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__(layers.window)
        self.layers = layers
        self.rings = _pages(len(layers.sliding), layers.ring)
        self._table = np.zeros((len(layers.full), 0), np.int64)
        self._ring_table = addresses(self.rings)[:, None]
        self._pages: list[Array] = []
        self.pointers = np.zeros(len(layers.full) + len(layers.sliding), np.int64)
        self.pointers[[*layers.sliding]] = addresses(self._ring_table)

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in full-attention layers."""
        while self.layers.full and len(self._pages) * PAGE < tokens:
            self._pages.append(_pages(len(self.layers.full), self.layers.pages))
            number = len(self._pages) - 1
            if number == self._table.shape[1]:
                more = np.zeros((len(self._table), number + 1), np.int64)
                self._table = np.concatenate([self._table, more], axis=1)
                self.pointers[[*self.layers.full]] = addresses(self._table)
            self._table[:, number] = addresses(self._pages[-1])

    def hold(self) -> list[Array]:
        return [self.rings.copy()]

    def put_back(self, rings: Sequence[Array | None]) -> None:
        (ring,) = rings
        assert ring is not None
        self.rings[:] = ring

    def part(self, start: int, end: int) -> list[Array]:
        pieces: list[list[Array]] = []
        for number in range(start // PAGE, -(-end // PAGE)):
            low, high = max(start - number * PAGE, 0), min(end - number * PAGE, PAGE)
            arrays = self.layers.pages.parts(self._pages[number]) if self._pages else []
            pieces.append(
                [between(a, axis, low, high) for a, axis in zip(arrays, TOKENS, strict=False)]
            )
        joined = zip(*pieces, strict=True)
        return [np.concatenate(same, axis) for same, axis in zip(joined, TOKENS, strict=False)]

    def fill(self, parts: Sequence[Sequence[Array]]) -> None:
        at = 0
        for arrays in parts:
            if not arrays:
                continue
            tokens = arrays[0].shape[TOKENS[0]]
            self.reserve(at + tokens)
            done = 0
            while done < tokens:
                low = (at + done) % PAGE
                count = min(PAGE - low, tokens - done)
                pages = self.layers.pages.parts(self._pages[(at + done) // PAGE])
                for page, array, axis in zip(pages, arrays, TOKENS, strict=False):
                    between(page, axis, low, low + count)[:] = between(
                        array, axis, done, done + count
                    )
                done += count
            at += tokens

    def trim(self, offset: int) -> None:
        super().trim(offset)
        self._release()

    def come_back(self, offset: int, rings: Sequence[Array | None], ahead: bool) -> None:
        super().come_back(offset, rings, ahead)
        self._release()

    def _release(self) -> None:
        """Free pages that no token lies in any more."""
        del self._pages[-(-self.offset // PAGE) :]

    def close(self) -> None:
        """Free all keys and values; the sequence is gone."""
        self._pages.clear()
        self.rings = self.rings[:0]

    @property
    def nbytes(self) -> int:
        return self.rings.nbytes + sum(pages.nbytes for pages in self._pages)


class Window:
    """What a prompt's chunk sees in one sliding layer: the earlier tokens that are still visible,
    and its own, in order, as a page of `places` tokens.

    tokens: of the longest chunk.
    """

    def __init__(self, layers: Layers, tokens: int) -> None:
        ring, self.window = layers.ring, layers.window
        places = -(-(tokens + layers.window) // library.ALIGNED) * library.ALIGNED
        self.pages = Pages(ring.kv_heads, ring.head_dim, ring.type, places)
        self._ring, self._page = ring, _pages(1, self.pages)
        self._table = addresses(self._page)
        self.pointer = int(addresses(self._table[None])[0])

    def earlier(self, offset: int) -> int:
        """Tokens before the chunk that its first token sees."""
        return min(offset, self.window - 1)

    def gather(self, ring: Array, offset: int) -> None:
        """Copy the earlier tokens here. ring uint8 [nbytes], of a sequence of `offset` tokens."""
        count = self.earlier(offset)
        self._copy(ring, np.arange(offset - count, offset) % self.window, 0, into_ring=False)

    def scatter(self, ring: Array, offset: int, tokens: int) -> None:
        """Copy a chunk's last tokens, which were written behind the earlier ones, into the ring."""
        count = min(tokens, self.window)
        places = np.arange(offset + tokens - count, offset + tokens) % self.window
        self._copy(ring, places, self.earlier(offset) + tokens - count, into_ring=True)

    def _copy(self, ring: Array, places: Array, start: int, *, into_ring: bool) -> None:
        theirs, ours = self._ring.parts(ring[None]), self.pages.parts(self._page)
        for there, here, axis in zip(theirs, ours, TOKENS, strict=False):
            part = between(here, axis, start, start + len(places))
            at = (..., places) if axis == -1 else (..., places, slice(None))
            if into_ring:
                there[at] = part
            else:
                part[:] = there[at]


def addresses(rows: Array) -> Array:
    """Where each row of a contiguous array lies, int64 [rows]."""
    first = library.address(rows)
    assert first is not None
    return first + np.arange(len(rows), dtype=np.int64) * rows.strides[0]


def _pages(count: int, pages: Pages) -> Array:
    # Zeros, because a kernel multiplies places that it masks, which must not give NaN.
    return np.zeros((count, pages.nbytes), np.uint8)
