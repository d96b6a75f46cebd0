"""Slot mapping of a step: where its tokens are written in each layer, and what they attend to.

The numbers of all layers and sequences are in one table a step, of which a kernel is given the
layer's index. A device array for each of these numbers and each layer would be a hundred
allocations a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from gptoss_mlx.backends.mlx.ops.metal import index

WHOLE = 1024  # tokens up to which attention takes them in one range
RANGE = 512  # tokens of a range at most, beyond that and until there are MOST_RANGES
MOST_RANGES = 32


class Spot(NamedTuple):
    """A sequence's token in one layer. held: tokens in the arena. slot: the token's slot in the
    page. seen: tokens of the page that it attends to, itself among them."""

    held: int
    slot: int
    seen: int

    @property
    def ranges(self) -> int:
        """Ranges that attention divides the sequence into (split-KV). The number follows from the
        sequence's own length, so that its result does not depend on what is decoded beside it."""
        tokens = self.held + self.seen
        if tokens <= WHOLE:
            return 1
        return min(MOST_RANGES, 1 << (-(-tokens // RANGE) - 1).bit_length())


class Place(NamedTuple):
    """A layer's part of the table.

    offsets: the position of each sequence's one token, or that of the first token of a chunk.
    """

    offsets: tuple[int, ...]
    spots: tuple[Spot, ...]
    table: mx.array
    """int32 [sequences, layers, 5]: position, held, slot, seen, ranges; metal/places.metal counts
    these columns."""
    layer: mx.array
    """int32 []"""

    @property
    def paged(self) -> bool:
        """Whether the tokens are written into pages."""
        return self.spots[0].seen > 0


NOWHERE = Spot(0, 0, 0)
"""The spot of tokens that no page takes: their keys and values are returned instead."""


def places(offsets: Sequence[int], spots: Sequence[Sequence[Spot]]) -> list[Place]:
    """A place for each layer. spots: of each sequence, one for each layer."""
    rows = [
        [(offset, *spot, spot.ranges) for spot in own]
        for offset, own in zip(offsets, spots, strict=True)
    ]
    table = mx.array(np.array(rows, np.int32))
    return [
        Place(tuple(offsets), layer, table, index(number))
        for number, layer in enumerate(zip(*spots, strict=True))
    ]


def anywhere(*offsets: int) -> Place:
    """The place, in any layer, of tokens whose keys and values are returned, not written."""
    return places(offsets, [[NOWHERE] * 2] * len(offsets))[0]  # two: never in constant memory
