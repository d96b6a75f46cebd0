"""Going back to an earlier position of a sequence, and taking copies of its parts: rules for its KV
cache on every device.

A full-attention layer can forget its newest tokens at any time. A sliding layer's ring cannot: it
has overwritten what lay `window` tokens before. So a snapshot keeps the rings, which are small, and
the position; restoring it puts the rings back and forgets the newer tokens. That is exact, and
costs only the rings' bytes.

One token can always be forgotten: it overwrote the token `window` before it, which the token that
comes in its place does not see either. Then the ring is ahead of the sequence by one token, and
cannot go further back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Generic, TypeVar

from gptoss_mlx.backends.protocol import Array, Layout
from gptoss_mlx.errors import CapacityError
from gptoss_mlx.files.shard import ITEM_BYTES

A = TypeVar("A", bound=Array)
NOWHERE = -1


@dataclass(frozen=True)
class Copied(Generic[A]):
    """A segment: of tokens start to end, the arrays of all full-attention layers, and the rings at
    the end. ahead: whether the rings are ahead by one token."""

    start: int
    end: int
    kept: tuple[A, ...]
    rings: tuple[A | None, ...]
    ahead: bool = False

    @property
    def arrays(self) -> list[A]:
        return [*self.kept, *(ring for ring in self.rings if ring is not None)]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


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
        self._short = NOWHERE  # the offset at which the rings are ahead by a token

    @abstractmethod
    def hold(self) -> Sequence[A | None]:
        """Copies of the rings; None for one that holds nothing yet."""

    @abstractmethod
    def put_back(self, rings: Sequence[A | None]) -> None:
        """Restore the rings from what `hold` gave, which stays as it is."""

    @abstractmethod
    def part(self, start: int, end: int) -> Sequence[A]:
        """Copies of the keys and values of all full-attention layers, tokens start to end."""

    @abstractmethod
    def fill(self, parts: Sequence[Sequence[A]]) -> None:
        """Write what `part` gave, one after another, into an empty sequence."""

    def snapshot(self, back: int = 0) -> RingSnapshot[A]:
        """A snapshot of now, or of one token ago. Raises ValueError for what cannot be."""
        offset = self.offset - back
        if not (back in (0, 1) and self.can_trim(offset)):
            raise ValueError(f"no snapshot of {back} tokens before {self.offset}")
        ahead = (back == 1 and self.offset > self.window) or self._short == offset
        return RingSnapshot(self, offset, tuple(self.hold()), ahead)

    def can_trim(self, offset: int) -> bool:
        """Whether `trim(offset)` is possible: nothing has been overwritten in the rings that the
        next token sees."""
        if offset == self.offset:
            return True
        fresh = 0 <= offset < self.offset != self._short
        return fresh and (self.offset <= self.window or offset == self.offset - 1)

    def trim(self, offset: int) -> None:
        """Forget all tokens from `offset` on.

        Raises ValueError where a ring has overwritten what lay before: restore a snapshot instead.
        """
        if not self.can_trim(offset):
            raise ValueError(
                f"cannot go back from {self.offset} to {offset}: rings hold {self.window} tokens"
            )
        if offset < self.offset > self.window:
            self._short = offset
        self.offset = offset

    def come_back(self, offset: int, rings: Sequence[A | None], ahead: bool) -> None:
        """Put back rings that were held at an earlier offset."""
        self.put_back(rings)
        self.offset, self._short = offset, offset if ahead else NOWHERE

    def segment(self, start: int, snapshot: RingSnapshot[A]) -> Copied[A]:
        """Raises ValueError unless the snapshot is one of this sequence, behind `start`."""
        end = snapshot.offset
        if snapshot.state is not self or not 0 <= start < end <= self.offset:
            raise ValueError(f"no segment from {start} to {end} in a sequence of {self.offset}")
        return Copied(start, end, tuple(self.part(start, end)), snapshot.rings, snapshot.ahead)

    def restore(self, segments: Sequence[Copied[A]]) -> None:
        """Become the sequence of which these are all parts. Raises ValueError if one is missing."""
        end = 0
        for segment in segments:
            if segment.start != end:
                raise ValueError(
                    f"a segment begins at {segment.start}, the one before ends at {end}"
                )
            end = segment.end
        if self.offset or not segments:
            raise ValueError(
                "only an empty sequence can be restored, and from one segment at least"
            )
        self.fill([segment.kept for segment in segments])
        self.come_back(end, segments[-1].rings, segments[-1].ahead)

    def recall(self, segment: Copied[A]) -> RingSnapshot[A]:
        return RingSnapshot(self, segment.end, segment.rings, segment.ahead)


@dataclass(frozen=True)
class RingSnapshot(Generic[A]):
    """The rings of a state at one position; valid while its first `offset` tokens stay the same."""

    state: Rewindable[A]
    offset: int
    rings: tuple[A | None, ...]
    ahead: bool = False

    @property
    def nbytes(self) -> int:
        return sum(ring.nbytes for ring in self.rings if ring is not None)

    def restore(self) -> None:
        """Bring the sequence back here. Raises ValueError if it has become shorter."""
        if self.offset > self.state.offset:
            raise ValueError(
                f"snapshot at {self.offset}, but the state ends at {self.state.offset}"
            )
        self.state.come_back(self.offset, self.rings, self.ahead)


def layout_bytes(layout: Layout) -> int:
    """Bytes of a segment of this layout."""
    return sum(prod(shape) * ITEM_BYTES[dtype] for dtype, shape in layout.values())
