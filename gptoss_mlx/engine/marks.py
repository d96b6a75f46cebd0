"""Where a prompt is worth a snapshot: the places from which later prompts may go on differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gptoss_mlx.harmony.encoding import ANALYSIS, ASSISTANT, CHANNEL, START, USER

LEAST = 64
"""Tokens between two places at least: so many are read again rather than kept."""

PIECE = 2048
"""Tokens between two places at most. A long text is kept in pieces of that many."""

_SPARSER = 4


@dataclass(frozen=True)
class Marks:
    """Positions in a prompt at which snapshots are taken.

    head: where the instructions and tools end, which conversations share; 0 if nowhere.
    reply: where the answer begins, and the reasoning that the next user's turn drops: in a tool
    loop under way before its first reasoning, else the prompt's end.
    """

    positions: tuple[int, ...]
    head: int
    reply: int


def marks_of(ids: Sequence[int], harmony: bool) -> Marks:
    """The marks of a prompt of at least one token, of which the last is never prefilled.

    Messages are parted after `<|start|>`, the token that all begin with. The last question is
    marked, since it may be edited; of the rest, the further from the end, the fewer: few prompts go
    on from there, and each mark cuts a prefill chunk short.
    """
    end = len(ids) - 1
    starts = [i + 1 for i in range(end) if ids[i] == START] if harmony else []
    head = next((at for at in starts if ids[at] in (USER, ASSISTANT)), 0)
    reasoning = (ASSISTANT, CHANNEL, ANALYSIS)
    reply = next((at for at in starts if tuple(ids[at : at + 3]) == reasoning), end)
    asked = next((at for at in reversed(starts) if ids[at] == USER), 0)
    chosen = {head, asked, reply, end} - {0}
    for at in reversed(starts):
        before = max((mark for mark in chosen if mark < at), default=0)
        after = min(mark for mark in chosen if mark >= at)
        if at - before >= LEAST and after - at >= max(LEAST, (end - at) // _SPARSER):
            chosen.add(at)
    for before, after in pairwise(sorted({0, *chosen})):
        chosen.update(range(before + PIECE, after - LEAST, PIECE))
    return Marks(tuple(sorted(chosen)), head, reply)
