"""Pages of several sequences in one array, so that one kernel writes a token into each.

A page is a small buffer [2, kv_heads, tokens, head_dim] of keys and values: the newest tokens of a
full-attention layer, or a sliding layer's ring. Sequences that are decoded together have theirs in
the rows of one array, and keep them there as long as they go on together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx


class Row(NamedTuple):
    """One of several pages of the same shape, in an array [rows, ...]."""

    pages: mx.array
    at: int

    @property
    def nbytes(self) -> int:
        return self.pages.nbytes // len(self.pages)

    @property
    def page(self) -> mx.array:
        return self.pages[self.at]

    def alone(self) -> Row:
        """The same page in an array of its own, so that the others can be freed."""
        if len(self.pages) == 1:
            return self
        page = mx.contiguous(self.pages[self.at : self.at + 1])
        mx.async_eval(page)  # type: ignore[no-untyped-call]
        return Row(page, 0)


def joined(rows: Sequence[Row]) -> mx.array:
    """The pages as one array, in this order: without a copy if they already are."""
    pages = rows[0].pages
    together = all(row.pages is pages and row.at == i for i, row in enumerate(rows))
    if together and len(rows) == len(pages):
        return pages
    return mx.concatenate([row.pages[row.at : row.at + 1] for row in rows])
