"""Slot mapping of a step: where its token is written in each layer, and which tokens it attends to.

All layers' numbers are in one table a step, of which a kernel is given the layer's row. A device
array for each of these numbers and each layer would be a hundred allocations a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from gptoss_mlx.backends.mlx.ops.metal import index


class Spot(NamedTuple):
    """A token in one layer. held: tokens in the arena. slot: the token's slot in the page.
    seen: tokens of the page that it attends to, itself among them."""

    held: int
    slot: int
    seen: int


class Place(NamedTuple):
    """A layer's row of the table. offset: the position of the step's first token."""

    offset: int
    spot: Spot
    table: mx.array
    """int32 [layers, 4]: offset, held, slot, seen; metal/places.metal counts these columns."""
    row: mx.array
    """int32 []"""


NOWHERE = Spot(0, 0, 0)
"""The spot of tokens that no page takes: their keys and values are returned instead."""


def places(offset: int, spots: Sequence[Spot]) -> list[Place]:
    """A place for each layer's spot."""
    table = mx.array(np.array([(offset, *spot) for spot in spots], np.int32))
    return [Place(offset, spot, table, index(row)) for row, spot in enumerate(spots)]


def anywhere(offset: int) -> Place:
    """The place, in any layer, of tokens whose keys and values are returned, not written."""
    return places(offset, [NOWHERE])[0]
