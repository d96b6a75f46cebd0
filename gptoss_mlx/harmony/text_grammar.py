"""The grammar of a text: a JSON schema, a Lark grammar or a regular expression, token by token."""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn, Protocol

import numpy as np
from llguidance import LLMatcher

from gptoss_mlx.errors import GrammarError
from gptoss_mlx.spec.sampling import Mask

FEW = 64
"""So many allowed ids stand in a mask by number."""


class GrammarState(Protocol):
    """A state of a grammar: what may come next, and the state after it."""

    @property
    def mask(self) -> Mask: ...

    def advance(self, id: int) -> GrammarState:
        """The state after this token, also if the token is not permitted."""


class TextGrammar:
    """A compiled grammar. matcher: at its beginning, never advanced.

    name: what it is for, in errors. tokens: how many the text is made of, by id from 0.
    vocab_size: the number of logits.
    """

    def __init__(self, matcher: LLMatcher, name: str, tokens: int, vocab_size: int) -> None:
        self.matcher, self.name = matcher, name
        self.tokens, self.vocab_size = tokens, vocab_size

    def start(self, ends: Collection[int], outside: GrammarState) -> TextState:
        """The state at the text's beginning.

        ends: the tokens that end the text, permitted where it is complete. outside: the state that
        takes them, and whatever is not permitted, as if the text were free.
        """
        known = frozenset(id for id in ends if id < self.vocab_size)
        return TextState(self, self.matcher.deep_copy(), known, outside)

    def fail(self, why: str) -> NoReturn:
        """Raise GrammarError. why: the matcher's message, or ours."""
        raise GrammarError(f"{self.name}: {plain_reason(why)}")


class TextState:
    """A state inside a text. It never changes: the next one has a copy of the matcher."""

    __slots__ = ("_before", "_ends", "_grammar", "_mask", "_matcher", "_outside")

    def __init__(
        self,
        grammar: TextGrammar,
        matcher: LLMatcher,
        ends: frozenset[int],
        outside: GrammarState,
        before: Mask | None = None,
    ) -> None:
        self._grammar, self._matcher = grammar, matcher
        self._ends, self._outside = ends, outside
        self._before = before  # the mask of the state before
        self._mask: Mask | None = None

    @property
    def mask(self) -> Mask:
        """What may come next; the very object of the state before if that is the same.

        Computed when it is first asked for. Raises GrammarError if nothing may come.
        """
        if self._mask is None:
            self._mask = self._computed()
        return self._mask

    def advance(self, id: int) -> GrammarState:
        mask = self.mask
        if id in self._ends or not permits(mask, id):
            return self._outside.advance(id)
        matcher = self._matcher.deep_copy()
        if not matcher.consume_token(id):
            self._grammar.fail(matcher.get_error())
        return TextState(self._grammar, matcher, self._ends, self._outside, mask)

    def _computed(self) -> Mask:
        matcher, grammar = self._matcher, self._grammar
        bits = bytearray(matcher.compute_bitmask())
        if matcher.is_error():
            grammar.fail(matcher.get_error())
        _clear_from(bits, grammar.tokens)
        if matcher.is_accepting():
            bits += bytes(max(0, -(-grammar.vocab_size // 8) - len(bits)))
            for id in self._ends:
                bits[id // 8] |= 1 << id % 8
        _clear_from(bits, grammar.vocab_size)
        few = _few(bits)
        if few == ():
            grammar.fail("no token of the model's vocabulary continues the text")
        before, mask = self._before, Mask(bits=bytes(bits)) if few is None else Mask(allow=few)
        return before if before is not None and before == mask else mask


def permits(mask: Mask, id: int) -> bool:
    """Whether a mask permits a token."""
    if mask.bits is not None:
        return 0 <= id < 8 * len(mask.bits) and bool(mask.bits[id // 8] >> id % 8 & 1)
    return id in mask.allow if mask.allow is not None else id not in (mask.ban or ())


def _clear_from(bits: bytearray, size: int) -> None:
    """Ban the ids from `size` on."""
    if len(bits) * 8 > size:
        del bits[-(-size // 8) :]
        if size % 8:
            bits[-1] &= (1 << size % 8) - 1


def _few(bits: bytearray) -> tuple[int, ...] | None:
    """The ids that are set, or None for more than a few."""
    octets = np.frombuffer(bits, np.uint8)
    places = np.flatnonzero(octets)
    if len(places) > FEW:
        return None
    row, bit = np.nonzero(np.unpackbits(octets[places, None], axis=1, bitorder="little"))
    ids = (8 * places[row] + bit).tolist()
    return tuple(ids) if len(ids) <= FEW else None


def plain_reason(message: str) -> str:
    """A message of the compiler or the matcher in one line, without its state."""
    said = message.split("\n<state>")[0].split("<non-verbose/>")[0].strip()
    if said.startswith("NoExtension"):
        return "no text satisfies it"
    line = " ".join(said.split()).encode("ascii", "backslashreplace").decode("ascii")
    return line if len(line) <= 200 else f"{line[:197]}..."
