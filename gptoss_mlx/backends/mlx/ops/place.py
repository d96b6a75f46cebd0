"""Where a step's token goes in each layer, and what it sees there: one table a step.

A kernel is given the table and the layer's row. A device array for each of these numbers and each
layer would be a hundred allocations a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from gptoss_mlx.backends.mlx.ops.metal import index


class Spot(NamedTuple):
    """In one layer: tokens in the arena; the token's slot in the page, and the page's tokens that
    are seen once it is there."""

    held: int
    slot: int
    seen: int


class Place(NamedTuple):
    """A layer's row of the table. offset: the position of the first token that comes."""

    offset: int
    spot: Spot
    table: mx.array
    """int32 [layers, 4]: offset, held, slot, seen; metal/places.metal counts these columns."""
    row: mx.array
    """int32 []"""


NOWHERE = Spot(0, 0, 0)
"""Where keys and values are given back instead."""


def places(offset: int, spots: Sequence[Spot]) -> list[Place]:
    """A place for each layer's spot."""
    table = mx.array(np.array([(offset, *spot) for spot in spots], np.int32))
    return [Place(offset, spot, table, index(row)) for row, spot in enumerate(spots)]


def anywhere(offset: int) -> Place:
    """Of tokens whose keys and values are given back, for any layer."""
    return places(offset, [NOWHERE])[0]
