"""Going back to an earlier position of a sequence: rules for its KV cache on every device.

A full-attention layer can forget its newest tokens at any time. A sliding layer's ring cannot: it
has overwritten what lay `window` tokens before. So a snapshot keeps the rings, which are small, and
the position; restoring it puts the rings back and forgets the newer tokens. That is exact, and
costs only the rings' bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gptoss_mlx.backends.protocol import Array
from gptoss_mlx.errors import CapacityError

A = TypeVar("A", bound=Array)


def check_rows(sequences: int, rows: int) -> None:
    """Raises CapacityError if more sequences are to be decoded together than there are rows."""
    if sequences > rows:
        most = "1 sequence" if rows == 1 else f"{rows} sequences"
        raise CapacityError(f"the model was opened for {most} at a time, not for {sequences}")


class Rewindable(ABC, Generic[A]):
    """A sequence that can go back. offset: its tokens, and so the position of the next one;
    window: tokens that a ring holds."""

    def __init__(self, window: int) -> None:
        self.offset, self.window = 0, window

    @abstractmethod
    def hold(self) -> Sequence[A | None]:
        """Copies of the rings; None for one that holds nothing yet."""

    @abstractmethod
    def put_back(self, rings: Sequence[A | None]) -> None:
        """Restore the rings from what `hold` gave, which stays as it is."""

    def snapshot(self) -> RingSnapshot[A]:
        return RingSnapshot(self, self.offset, tuple(self.hold()))

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


@dataclass(frozen=True)
class RingSnapshot(Generic[A]):
    """The rings of a state at one position; valid while its first `offset` tokens stay the same."""

    state: Rewindable[A]
    offset: int
    rings: tuple[A | None, ...]

    @property
    def nbytes(self) -> int:
        return sum(ring.nbytes for ring in self.rings if ring is not None)

    def restore(self) -> None:
        """Bring the sequence back here. Raises ValueError if it has become shorter."""
        if self.offset > self.state.offset:
            raise ValueError(
                f"snapshot at {self.offset}, but the state ends at {self.state.offset}"
            )
        self.state.put_back(self.rings)
        self.state.offset = self.offset
