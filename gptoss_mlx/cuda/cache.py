"""What sequences remember: keys and values of every layer, in memory that never moves.

A `Cache` has rows for as many sequences as were planned. A full-attention layer keeps every token
of a row in an arena of `context` places, by position; a sliding layer the last `window` in a ring:
the token at position p lies in place p % window. `State` is one row while a sequence has it.

As on MLX, an arena can forget its newest tokens at any time, a ring cannot: `State.snapshot` keeps
the rings and the position, and `State.restore` puts them back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptoss_mlx.config import ModelConfig
from gptoss_mlx.errors import CapacityError


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
            # Zeros, because what a kernel masks it may still multiply.
            shape = (count, rows, 2, width[0], tokens, width[1])
            return torch.zeros(shape, dtype=dtype, device=device)

        self.arenas, self.rings = room(len(full), context), room(len(sliding), self.window)
        self.layers = {i: self.arenas[at] for at, i in enumerate(full)}
        self.layers |= {i: self.rings[at] for at, i in enumerate(sliding)}
        """Of each layer [rows, 2, kv_heads, places, head_dim]."""
        self._free = list(reversed(range(rows)))

    def new_state(self) -> State:
        """An empty sequence. Raises CapacityError if every row has one."""
        if not self._free:
            sequences = "1 sequence" if self.rows == 1 else f"{self.rows} sequences"
            raise CapacityError(
                f"the model was opened for {sequences} at a time, and as many are running"
            )
        return State(self, self._free.pop())

    def release(self, row: int) -> None:
        self._free.append(row)


@dataclass(frozen=True)
class Snapshot:
    """A sequence's state at one position; valid while its first `offset` tokens stay the same.

    rings [sliding layers, 2, kv_heads, window, head_dim].
    """

    offset: int
    rings: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.rings.nbytes


class State:
    """One sequence in its row: `offset` tokens are in it, the next one has position `offset`."""

    def __init__(self, cache: Cache, row: int) -> None:
        self.cache, self.row, self.offset = cache, row, 0
        self.window = cache.window
        self._closed = False

    def close(self) -> None:
        """Give the row back; the sequence is gone."""
        if not self._closed:
            self._closed = True
            self.cache.release(self.row)

    def __del__(self) -> None:
        self.close()

    def snapshot(self) -> Snapshot:
        return Snapshot(self.offset, self.cache.rings[:, self.row].clone())

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this sequence.

        Raises ValueError if the sequence is shorter than the snapshot.
        """
        if snapshot.offset > self.offset:
            raise ValueError(f"snapshot at {snapshot.offset}, but the state ends at {self.offset}")
        self.cache.rings[:, self.row] = snapshot.rings
        self.offset = snapshot.offset

    def can_trim(self, offset: int) -> bool:
        """Whether `trim(offset)` is possible: nothing has been overwritten in the rings yet."""
        return offset == self.offset or 0 <= offset < self.offset <= self.window

    def trim(self, offset: int) -> None:
        """Forget all tokens from `offset` on.

        Raises ValueError where a ring has overwritten what lay before: restore a snapshot instead.
        """
        if not self.can_trim(offset):
            raise ValueError(
                f"cannot go back from {self.offset} to {offset}: rings hold {self.window} tokens"
            )
        self.offset = offset

    @property
    def nbytes(self) -> int:
        return (self.cache.arenas.nbytes + self.cache.rings.nbytes) // self.cache.rows
