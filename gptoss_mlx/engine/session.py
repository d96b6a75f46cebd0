"""A session: the KV cache of one sequence, and how much of it the next prompt can reuse.

A session knows which tokens its state holds. `resume` takes a new prompt and keeps the longest
prefix it can: by continuing, by trimming while the ring buffers still hold everything, or by
restoring a snapshot. Snapshots are taken where a later prompt is likely to diverge, and the oldest
are dropped when they exceed their budget. Nothing here imports a tensor library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptoss_mlx.backends.protocol import AnyModel, Snapshot
from gptoss_mlx.plan.buffers import SNAPSHOT_BUDGET


class Session:
    """The tokens a state holds, and the snapshots taken of it on the way.

    chunk: the most tokens of the next chunk of a prefill.
    """

    def __init__(self, model: AnyModel, budget: int = SNAPSHOT_BUDGET) -> None:
        self.model, self.budget = model, budget
        self.chunk = model.chunk
        self.state = model.new_state()
        self.tokens: list[int] = []
        self.snapshots: list[Snapshot] = []

    def resume(self, ids: Sequence[int]) -> int:
        """Keep the prefix shared with `ids`, but leave the last token of `ids` to be read again.

        Returns how many tokens are kept; the state then holds exactly those.
        """
        common = _common(self.tokens, ids[:-1])
        kept = [s for s in self.snapshots if s.offset <= common]
        if self.state.can_trim(common):
            self.state.trim(common)
        elif kept:
            kept[-1].restore()
        else:
            self.state.close()
            self.state = self.model.new_state()
        del self.tokens[self.state.offset :]
        self.snapshots = [s for s in kept if s.offset <= self.state.offset]
        return self.state.offset

    def prefill(self, ids: Sequence[int], marks: Sequence[int] = ()) -> Iterator[int]:
        """Append tokens chunk by chunk; yields the number appended so far after each.

        marks: positions in the sequence at which a snapshot is taken when they are reached.
        """
        begun, done = self.state.offset, 0
        ends = {mark - begun for mark in marks if begun <= mark <= begun + len(ids)}
        for end in sorted(ends | {len(ids)}):
            while done < end:
                chunk = ids[done : min(end, done + self.chunk)]
                self.model.prefill(chunk, self.state)
                self.tokens += chunk
                done += len(chunk)
                yield done
            if end in ends:
                self.mark()

    def note(self, id: int) -> None:
        """Record the id of the token that a decode step has appended."""
        self.tokens.append(id)

    def mark(self) -> None:
        """Take a snapshot at the current position, unless there is one already."""
        if self.snapshots and self.snapshots[-1].offset == self.state.offset:
            return
        self.snapshots.append(self.state.snapshot())
        while sum(s.nbytes for s in self.snapshots) > self.budget:
            del self.snapshots[0]

    def close(self) -> None:
        """Free the state and the snapshots; the session cannot be used afterwards."""
        self.snapshots.clear()
        self.state.close()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
