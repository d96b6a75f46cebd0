"""A session: the KV cache of one sequence, and how much of it the next prompt can reuse.

A session knows which tokens its state holds. `resume` takes a new prompt and keeps the longest
prefix it can: by continuing, by trimming while the ring buffers still hold everything, or by
restoring a snapshot. Snapshots are taken where a later prompt is likely to diverge, and the oldest
are dropped when they exceed their budget. Nothing here imports a tensor library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptoss_mlx.backends.protocol import AnyModel, Segment, Snapshot
from gptoss_mlx.engine.marks import Marks
from gptoss_mlx.plan.buffers import SNAPSHOT_BUDGET

NO_MARKS = Marks((), 0, 0)
_COMPARED = 256


class Session:
    """The tokens a state holds, and the snapshots taken of it on the way.

    chunk: the most tokens of the next chunk of a prefill. marks: those of its last prompt.
    """

    def __init__(
        self,
        model: AnyModel,
        budget: int = SNAPSHOT_BUDGET,
        tokens: Sequence[int] = (),
        segments: Sequence[Segment] = (),
    ) -> None:
        """An empty session, or one of tokens that segments hold."""
        self.model, self.budget, self.marks = model, budget, NO_MARKS
        self.chunk = model.chunk
        self.state = model.restore(segments) if segments else model.new_state()
        self.tokens = list(tokens)
        self.snapshots: list[Snapshot] = [self.state.recall(segment) for segment in segments]
        self._drop_oldest()

    def reusable(self, ids: Sequence[int]) -> int:
        """How many tokens `resume` would keep."""
        common = _common(self.tokens, ids[:-1])
        return common if self.state.can_trim(common) else self.shared(ids)

    def shared(self, ids: Sequence[int]) -> int:
        """How many tokens a copy of this session could give a prompt: up to a snapshot."""
        common = _common(self.tokens, ids[:-1])
        return max((s.offset for s in self.snapshots if s.offset <= common), default=0)

    def loses(self, ids: Sequence[int]) -> bool:
        """Whether `resume` would lose what another prompt than the next of this conversation may
        ask for: it would not if only an answer with dropped reasoning goes, and what follows it."""
        return self.reusable(ids) < min(self.marks.reply, self._last)

    @property
    def _last(self) -> int:
        return self.snapshots[-1].offset if self.snapshots else 0

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

    def prefill(self, ids: Sequence[int], marks: Marks = NO_MARKS) -> Iterator[int]:
        """Append tokens chunk by chunk; yields the number appended so far after each.

        A snapshot is taken at each mark when it is reached.
        """
        begun, done, self.marks = self.state.offset, 0, marks
        ends = {mark - begun for mark in marks.positions if begun <= mark <= begun + len(ids)}
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
        self._take(0)

    def mark_answer(self) -> None:
        """Take a snapshot before the last token, a stop token: prompts that go on from this answer
        end its message otherwise."""
        if self.state.offset == len(self.tokens) and self.state.can_trim(len(self.tokens) - 1):
            self._take(1)

    def _take(self, back: int) -> None:
        if self._last < self.state.offset - back:
            self.snapshots.append(self.state.snapshot(back))
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Keep within the budget. The marks that every conversation goes back to go last, but for
        the newest snapshot."""
        lasting = (self.marks.head, self.marks.reply)
        while self.snapshots and sum(s.nbytes for s in self.snapshots) > self.budget:
            rest = [i for i, s in enumerate(self.snapshots[:-1]) if s.offset not in lasting]
            del self.snapshots[rest[0] if rest else 0]

    def close(self) -> None:
        """Free the state and the snapshots; the session cannot be used afterwards."""
        self.snapshots.clear()
        self.state.close()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common prefix. Most of it is compared a piece at a time."""
    length, begin = min(len(a), len(b)), 0
    while begin + _COMPARED <= length and (
        a[begin : begin + _COMPARED] == b[begin : begin + _COMPARED]
    ):
        begin += _COMPARED
    return next((i for i in range(begin, length) if a[i] != b[i]), length)
