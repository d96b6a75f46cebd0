"""Argument types of the operations in PyTorch, besides plain tensors.

Pairs: a token that visits k experts makes k pairs, pair p = token * k + choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch


class Heads(NamedTuple):
    """How a layer's queries, keys and values are divided."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Matrix:
    """W [outputs, inputs]: floats in `weight`, or bytes q with W = q * scale + bias by group.

    weight: the compute dtype, or uint8; scales and biases [outputs, inputs / group], floating.
    """

    weight: torch.Tensor
    scales: torch.Tensor | None = None
    biases: torch.Tensor | None = None

    @property
    def group(self) -> int:
        """Inputs that share a scale; 0 where nothing is quantized."""
        return 0 if self.scales is None else self.weight.shape[1] // self.scales.shape[1]


@dataclass(frozen=True)
class Bank:
    """The experts of one layer that are on the device.

    packed: whether they are as `mxfp4.pack` arranges them for the kernels, or as files have them.

    Slot s of the blocks and scales holds one expert; biases are indexed by expert id.
    gate_up: blocks [slots, 2 * intermediate, hidden / 2] uint8, gate and up rows interleaved, and
    their scales; down: blocks [slots, hidden, intermediate / 2] uint8, and their scales
    gate_up_bias [experts, 2 * intermediate], down_bias [experts, hidden], the compute dtype
    """

    gate_up_blocks: torch.Tensor
    gate_up_scales: torch.Tensor
    down_blocks: torch.Tensor
    down_scales: torch.Tensor
    gate_up_bias: torch.Tensor
    down_bias: torch.Tensor
    packed: bool = True

    @property
    def slots(self) -> int:
        return self.gate_up_blocks.shape[0]

    @property
    def matrices(self) -> tuple[torch.Tensor, ...]:
        """The arrays indexed by slot: blocks and scales of gate_up, then of down."""
        return self.gate_up_blocks, self.gate_up_scales, self.down_blocks, self.down_scales


@dataclass(frozen=True)
class Groups:
    """Pairs grouped by the slot they visit, cut into tiles of at most `tile` pairs of one slot.

    order [pairs] int32: the pairs' numbers, ascending by slot and then by pair. Tile i is
    order[begin[i] : end[i]], all of slot[i]; the used tiles come first, by slot and position, and
    an unused tile has slot -1 and begin equal to end. slot, begin, end [most_tiles(..)] int32.
    """

    order: torch.Tensor
    slot: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor
    tile: int


Routed: TypeAlias = tuple[torch.Tensor, torch.Tensor, Groups]
"""Experts int32 and their weights float32 [tokens, k], the pairs grouped."""


def most_tiles(pairs: int, slots: int, tile: int) -> int:
    """The largest possible number of tiles: each visited slot may end with one not full."""
    visited = min(pairs, slots)
    return visited + (pairs - visited) // tile
