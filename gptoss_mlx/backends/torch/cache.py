"""The KV cache: keys and values of every layer and sequence, at addresses that never change.

A `Cache` has a fixed number of rows, one for each sequence that computes. A full-attention layer
keeps all tokens of a row in an arena of `context` places, by position; a sliding layer keeps the
last `window` in a ring buffer: the token at position p lies in place p % window.

`State` is a sequence. It has a row while it computes; if there are more sequences than rows, the
least recently used one is parked: its row is copied, bit for bit, to the host's memory until it
computes again. Free rows are derived from the live states, so that no row can be lost.

backends/state.py has the rules for going back to an earlier position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias
from weakref import WeakSet

import torch

from gptoss_mlx.backends.state import Rewindable, check_rows
from gptoss_mlx.spec.config import ModelConfig


class Cache:
    """Memory for `rows` sequences of up to `context` tokens.

    arenas [full layers, rows, 2, kv_heads, context, head_dim], keys and then values;
    rings [sliding layers, rows, 2, kv_heads, window, head_dim].
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        context: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rows, self.context, self.window = rows, context, config.sliding_window
        layers = range(config.num_hidden_layers)
        sliding = [i for i in layers if config.is_sliding(i)]
        full = [i for i in layers if not config.is_sliding(i)]
        width = (config.num_key_value_heads, config.head_dim)

        def room(count: int, tokens: int) -> torch.Tensor:
            # Zeros, because a kernel may multiply masked places by 0, which must not give NaN.
            shape = (count, rows, 2, width[0], tokens, width[1])
            return torch.zeros(shape, dtype=dtype, device=device)

        self.arenas, self.rings = room(len(full), context), room(len(sliding), self.window)
        self.layers = {i: self.arenas[at] for at, i in enumerate(full)}
        self.layers |= {i: self.rings[at] for at, i in enumerate(sliding)}
        """By layer number: [rows, 2, kv_heads, places, head_dim]."""
        self._states: WeakSet[State] = WeakSet()
        self._clock = count()

    def new_state(self) -> State:
        """An empty sequence."""
        state = State(self)
        self._states.add(state)
        return state

    def seat(self, states: Sequence[State]) -> list[int]:
        """Rows for sequences that are to compute together; others are parked where necessary.

        Raises CapacityError, before anything is moved, if there are fewer rows.
        """
        check_rows(len(states), self.rows)
        for state in states:
            state.used = next(self._clock)
        return [self._row_of(state) for state in states]

    def _row_of(self, state: State) -> int:
        if isinstance(state.place, int):
            return state.place
        taken = {other.place: other for other in self._states if isinstance(other.place, int)}
        row = next((row for row in range(self.rows) if row not in taken), None)
        if row is None:
            resting = min(taken.values(), key=lambda other: other.used)
            row = resting.park()
        if isinstance(state.place, Parked):
            tokens = min(state.offset, state.place.arenas.shape[-2])  # none that were trimmed
            self.arenas[:, row, :, :, :tokens] = state.place.arenas[..., :tokens, :]
            self.rings[:, row] = state.place.rings
        state.place = row
        return row


@dataclass(frozen=True)
class Parked:
    """The keys and values of a sequence without a row, in the host's memory.

    arenas [full layers, 2, kv_heads, tokens, head_dim]; rings likewise, of `window` tokens.
    """

    arenas: torch.Tensor
    rings: torch.Tensor


Place: TypeAlias = "int | Parked | None"


class State(Rewindable[torch.Tensor]):
    """One sequence.

    place: its row, or its parked copy; None as long as it is empty. When a sequence moves only this
    is assigned, after the copying, so that it is valid at any time. used: the cache's clock
    when it was last seated.
    """

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache.window)
        self.cache = cache
        self.place: Place = None
        self.used = -1

    @property
    def row(self) -> int:
        """The sequence's row; it is given one if it has none."""
        return self.place if isinstance(self.place, int) else self.cache.seat([self])[0]

    def park(self) -> int:
        """Copy the row to the host's memory and give it up -> its number."""
        row = self.row
        arenas, rings = self.cache.arenas[:, row, :, :, : self.offset], self.cache.rings[:, row]
        self.place = Parked(arenas.to("cpu", copy=True), rings.to("cpu", copy=True))
        return row

    def close(self) -> None:
        """Give the row back; the sequence is gone."""
        self.place, self.offset = None, 0

    def hold(self) -> list[torch.Tensor | None]:
        return [self.cache.rings[:, self.row].clone()]

    def put_back(self, rings: Sequence[torch.Tensor | None]) -> None:
        (held,) = rings
        assert held is not None
        self.cache.rings[:, self.row] = held

    def part(self, start: int, end: int) -> list[torch.Tensor]:
        place = self.place
        held = place.arenas if isinstance(place, Parked) else self.cache.arenas[:, self.row]
        return [held[..., start:end, :].to(self.cache.arenas.device, copy=True).contiguous()]

    def fill(self, parts: Sequence[Sequence[torch.Tensor]]) -> None:
        row, end = self.row, 0
        for (kept,) in parts:
            start, end = end, end + kept.shape[-2]
            self.cache.arenas[:, row, :, :, start:end] = kept

    @property
    def nbytes(self) -> int:
        return (self.cache.arenas.nbytes + self.cache.rings.nbytes) // self.cache.rows
