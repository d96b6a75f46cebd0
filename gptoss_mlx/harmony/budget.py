"""The reasoning budget: analysis that ends, properly, after a number of tokens."""

from __future__ import annotations

from gptoss_mlx.harmony.encoding import END
from gptoss_mlx.harmony.headers import HeaderState
from gptoss_mlx.harmony.text_grammar import GrammarState
from gptoss_mlx.spec.sampling import Mask

_END = Mask(allow=(END,))


class BudgetState:
    """A state of the header grammar with a budget. It never changes.

    inner: the state of the grammar whose start is `begin`. left: tokens that analysis may still
    have, headers not counted. spent: the start of a grammar without analysis, entered at the next
    message once nothing is left.
    """

    __slots__ = ("_begin", "_inner", "_left", "_spent")

    def __init__(
        self, inner: HeaderState, begin: HeaderState, spent: GrammarState, left: int
    ) -> None:
        self._inner, self._begin, self._spent, self._left = inner, begin, spent, left

    @property
    def mask(self) -> Mask:
        return _END if self._in_analysis and self._left == 0 else self._inner.mask

    def advance(self, id: int) -> GrammarState:
        after, left = self._inner.advance(id), self._left
        if self._in_analysis and after is self._inner:
            left = max(0, left - 1)
        if left == 0 and after is self._begin:
            return self._spent
        if not isinstance(after, HeaderState):  # a text with a grammar ends the turn
            return after
        return BudgetState(after, self._begin, self._spent, left)

    @property
    def _in_analysis(self) -> bool:
        header = self._inner.header
        return header is not None and header.channel == "analysis" and header.recipient is None


def with_budget(begin: HeaderState, spent: HeaderState, tokens: int) -> GrammarState:
    """The state at the beginning of a turn whose analysis has at most so many tokens."""
    return BudgetState(begin, begin, spent, tokens) if tokens else spent
