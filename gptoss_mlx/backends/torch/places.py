"""The slot mapping of attention: where keys and values go in the cache, and what tokens attend to.

A `Step` is one token of each of several sequences; all that it uses is on the device, so that a
CUDA graph can capture it. A `Chunk` is consecutive tokens of one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from gptoss_mlx.backends.torch.cache import Cache, State
from gptoss_mlx.backends.torch.choice import Kernels
from gptoss_mlx.backends.torch.operands import Heads


@dataclass(frozen=True)
class Layer:
    """The parameters of one layer's attention, without its projections.

    periods: tokens per radian of each rotary pair; window: tokens a sliding layer sees, or None.
    """

    number: int
    heads: Heads
    periods: torch.Tensor
    sinks: torch.Tensor
    scale: float
    window: int | None


class Places(Protocol):
    def attend(self, qkv: torch.Tensor, layer: Layer, kernels: Kernels) -> torch.Tensor:
        """Write the tokens' keys and values to the cache, attend -> [tokens, heads * head_dim]."""


class Step:
    """One token of each of several sequences. positions, rows: int32 [sequences]."""

    def __init__(self, cache: Cache, positions: torch.Tensor, rows: torch.Tensor) -> None:
        self.cache, self.positions, self.rows = cache, positions, rows

    def attend(self, qkv: torch.Tensor, layer: Layer, kernels: Kernels) -> torch.Tensor:
        q = self._rotate(qkv, layer, kernels)
        lengths = self._seen if layer.window is None else self._seen_in_ring
        held = self.cache.layers[layer.number]
        return kernels.decode_attention(q, held, self.rows, lengths, layer.sinks, layer.scale)

    def _rotate(self, qkv: torch.Tensor, layer: Layer, kernels: Kernels) -> torch.Tensor:
        places = self.positions if layer.window is None else self._ring
        held = self.cache.layers[layer.number]
        return kernels.rope_write(
            qkv, self.positions, self.rows, places, held, layer.periods, layer.heads
        )

    @cached_property
    def _ring(self) -> torch.Tensor:
        return self.positions % self.cache.window

    @cached_property
    def _seen(self) -> torch.Tensor:
        return self.positions + 1

    @cached_property
    def _seen_in_ring(self) -> torch.Tensor:
        return self._seen.clamp(max=self.cache.window)


class Chunk:
    """The next `tokens` tokens of one sequence.

    On a sliding layer, writing them to the ring at once could overwrite tokens that the first of
    them still see. So they attend to a copy of the ring's last window - 1 tokens followed by their
    own keys and values, and the ring is updated last.
    """

    def __init__(self, cache: Cache, state: State, tokens: int) -> None:
        device = cache.rings.device
        self.cache, self.row = cache, state.row
        self.end, self.tokens = state.offset + tokens, tokens
        self.earlier = min(state.offset, cache.window - 1)
        self.positions = torch.arange(state.offset, self.end, dtype=torch.int32, device=device)
        self.rows = torch.full_like(self.positions, self.row)

    def attend(self, qkv: torch.Tensor, layer: Layer, kernels: Kernels) -> torch.Tensor:
        q, kv = self._rotate(qkv, layer, kernels)
        y = kernels.prefill_attention(q, kv, layer.sinks, layer.scale, layer.window)
        self._settle(kv, layer)
        return y

    def write(self, qkv: torch.Tensor, layer: Layer, kernels: Kernels) -> None:
        """Write the tokens' keys and values to the cache, without attending."""
        _, kv = self._rotate(qkv, layer, kernels)
        self._settle(kv, layer)

    def _rotate(
        self, qkv: torch.Tensor, layer: Layer, kernels: Kernels
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated queries, and the keys and values they see: [2, kv_heads, seen, head_dim]."""
        held = self.cache.layers[layer.number]
        rows, places = self.rows, self.positions
        if layer.window is not None:
            _, both, heads, _, width = held.shape
            seen = held.new_empty(1, both, heads, self.earlier + self.tokens, width)
            seen[0, :, :, : self.earlier] = held[self.row][:, :, self._before]
            held, rows, places = seen, self._first, self._behind
        q = kernels.rope_write(qkv, self.positions, rows, places, held, layer.periods, layer.heads)
        row = self.row if layer.window is None else 0
        return q, held[row, :, :, : self.end]

    def _settle(self, kv: torch.Tensor, layer: Layer) -> None:
        """Copy the last tokens into the ring, if the layer has one."""
        if layer.window is not None:
            last = self._last
            ring = self.cache.layers[layer.number][self.row]
            ring[:, :, last] = kv[:, :, -len(last) :]

    @cached_property
    def _before(self) -> torch.Tensor:
        """The ring's places of the tokens before the chunk, oldest first."""
        return self._ring(self.end - self.tokens - self.earlier, self.end - self.tokens)

    @cached_property
    def _last(self) -> torch.Tensor:
        """The ring's places of the chunk's last tokens."""
        return self._ring(self.end - min(self.tokens, self.cache.window), self.end)

    @cached_property
    def _first(self) -> torch.Tensor:
        return torch.zeros_like(self.rows)

    @cached_property
    def _behind(self) -> torch.Tensor:
        """The places of the chunk's tokens in the copy, after the earlier tokens."""
        return self.positions - self.positions[0] + self.earlier

    def _ring(self, begin: int, end: int) -> torch.Tensor:
        return torch.arange(begin, end, device=self.rows.device) % self.cache.window
