"""Byte-pair merging of long words, in time linear in their length.

Merging joins the two neighbouring parts whose union has the lowest rank, of several the leftmost,
until no union has a rank. A word is merged window by window. That is exact, because a sequence of
tokens is the result of merging a word if and only if every two neighbouring tokens are the result
of merging the two alone: before a merge could cross the joint between them, all merges happen
within the one or the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush

LONGEST_TOKEN = 128  # bytes
_WINDOW = 2048  # bytes
_MARGIN = 2 * LONGEST_TOKEN  # bytes; tokens this near to the end of a cut window may still change


def merge(word: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The tokens of a word. Every single byte must have a rank."""
    size = len(word)
    stop = list(range(1, size + 1))  # end of the part that begins here; 0 where none does
    start = list(range(-1, size))  # beginning of the part that ends here
    queue = [
        (rank, at, at + 2)
        for at in range(size - 1)
        if (rank := ranks.get(word[at : at + 2])) is not None
    ]
    heapify(queue)
    while queue:
        _, left, end = heappop(queue)
        right = stop[left]
        if not left < right < size or stop[right] != end:
            continue  # one of the two has been joined to another
        stop[left], stop[right], start[end] = end, 0, left
        if left > 0 and (rank := ranks.get(word[start[left] : end])) is not None:
            heappush(queue, (rank, start[left], end))
        if end < size and (rank := ranks.get(word[left : stop[end]])) is not None:
            heappush(queue, (rank, left, stop[end]))
    return list(_parts(word, stop))


def _parts(word: bytes, stop: list[int]) -> Iterator[bytes]:
    at = 0
    while at < len(word):
        yield word[at : stop[at]]
        at = stop[at]


def merge_long(
    word: bytes,
    ranks: Mapping[bytes, int],
    most: float = math.inf,
    window: int = _WINDOW,
    margin: int = _MARGIN,
) -> list[bytes]:
    """The tokens of a word of any length; its first tokens, if it has more than `most`."""
    done: list[bytes] = []
    begin = 0
    ahead = merge(word[:window], ranks)
    while begin + window < len(word) and len(done) <= most:
        kept, end = [], begin
        for token in ahead:
            if end + len(token) > begin + window - margin:
                break
            kept.append(token)
            end += len(token)
        ahead = merge(word[end : end + window], ranks)
        while kept and merge(kept[-1] + ahead[0], ranks) != [kept[-1], ahead[0]]:
            end -= len(kept.pop())
            ahead = merge(word[end : end + window], ranks)
        if not kept:  # no joint in a whole window
            return merge(word, ranks)
        done += kept
        begin = end
    return done + ahead
