"""Sampling: the order in which the rules are applied, the same on every device.

Penalties, logit bias, mask, temperature, top-k, top-p and min-p, the draw. Log-probabilities are
those of the logits before all of these. Sequences with equal rules are sampled together: scores
are float32 [n, vocabulary], a row for each, and each operation is one launch for all of them. A
row's token does not depend on the other rows. A backend's `Operations` are those on its arrays.
Only `SampledChoice.read` waits for the device, and only for the choice, not for what is queued
after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar

from gptoss_mlx.backends.protocol import Choice, Draw, SampledToken
from gptoss_mlx.plan.buffers import TOGETHER
from gptoss_mlx.spec.sampling import SMALLEST, WEYL, WORD, Mask, Sampling, check_finite

Fetch: TypeAlias = Callable[[], list[list[Any]]]
"""Waits until arrays have been copied to the host's memory, and returns their values."""


class Numbers(Protocol):
    """The operations that every library's arrays have."""

    @property
    def shape(self) -> Sequence[int]: ...
    def __getitem__(self, index: Self | slice, /) -> Self: ...
    def __gt__(self, other: float, /) -> Self: ...
    def __ge__(self, other: Self, /) -> Self: ...
    def __mul__(self, other: float, /) -> Self: ...
    def __truediv__(self, other: float, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...


A = TypeVar("A", bound=Numbers)


@dataclass(frozen=True)
class SampledChoice(Generic[A]):
    """A sampled token, which the device may still have to compute.

    token: its id, [1], on the device. step: its number in the answer, from 0. row: its place among
    the n that were chosen together.
    fetch: brings their ids [n]; the sums of the logits, each times 0, which are 0 if all are finite
    [n]; and, if asked for, the tokens' log-probabilities [n], the most probable ids and their
    log-probabilities [n, top].
    """

    token: A
    step: int
    row: int
    fetch: Fetch

    def read(self) -> SampledToken:
        """Wait for the token. Raises NumericalError if the logits it comes from are not finite."""
        id, check, *reported = [values[self.row] for values in self.fetch()]
        check_finite(check, self.step)
        if not reported:
            return SampledToken(int(id))
        logprob, *top = reported
        pairs = zip(*top, strict=True) if top else ()
        return SampledToken(int(id), logprob, tuple((int(i), value) for i, value in pairs))


class RuledSampler(Generic[A]):
    """The sampling of one sequence: its options, its seed, and what penalties have to remember.

    prompt: token ids. Raises SamplingError if logit_bias names a token that the model does not
    have.
    """

    def __init__(
        self, operations: Operations[A], options: Sampling, seed: int, prompt: Sequence[int]
    ) -> None:
        self._operations, vocab = operations, operations.vocab
        options.check_vocabulary(vocab)
        self.options, self.seed = options, seed
        self.rules = options.rules
        self.seen: A | None = None  # flags [1, vocabulary]: tokens in prompt or answer
        self.used: A | None = None  # float32 [1, vocabulary]: how often each is in the answer
        if options.repetition_penalty != 1:
            flags = operations.zeros(vocab, flags=True)
            self.seen = operations.flag(flags, operations.ids(sorted(set(prompt))))
        if options.presence_penalty != 0 or options.frequency_penalty != 0:
            self.used = operations.zeros(vocab)
        self._one = operations.floats([1])
        bias = options.logit_bias
        self.bias = (operations.ids(bias), operations.floats(bias.values()))
        self._mask: Mask | None = None
        self._mask_array = operations.ids(())

    def accept(self, choice: Choice[A]) -> None:
        """Count a choice as generated: later penalties see it."""
        if self.seen is not None:
            self.seen = self._operations.flag(self.seen, choice.token)
        if self.used is not None:
            self.used = self._operations.add(self.used, choice.token, self._one)

    def on_device(self, mask: Mask) -> A:
        """The mask's flags [1, vocabulary] or ids [k], without those that the model does not
        have."""
        if mask is not self._mask:
            self._mask, self._mask_array = mask, self._operations.mask(mask)
        return self._mask_array


class Operations(ABC, Generic[A]):
    """The rules, and the operations they are made of, for a vocabulary on a device.

    Scores are float32 [n, vocabulary], or [n, k] where a mask or top-k has left k candidates; a
    place is an index into a row of scores, and places are [n].
    """

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def choose(
        self, logits: A, draws: Sequence[Draw[RuledSampler[A]]]
    ) -> Sequence[SampledChoice[A]]:
        """Queue the choice of a token for each of several sequences: logits [rows, vocabulary].

        What they have in common is computed for all at once, see `_group`.
        """
        groups = defaultdict[Hashable, list[int]](list)
        for i, draw in enumerate(draws):
            groups[_group(draw)].append(i)
        choices = dict[int, SampledChoice[A]]()
        for group in groups.values():
            for start in range(0, len(group), TOGETHER):
                members = group[start : start + TOGETHER]
                equal = [draws[i] for i in members]
                raw = self.float32(self._rows(logits, [draw.row for draw in equal]))
                tokens, reported = self._sample(raw, equal)
                each = [tokens[row : row + 1] for row in range(len(members))]
                fetch = self.fetch([tokens, *reported], each)
                for row, i in enumerate(members):
                    choices[i] = SampledChoice(each[row], draws[i].step, row, fetch)
        return [choices[i] for i in range(len(draws))]

    def _rows(self, logits: A, rows: Sequence[int]) -> A:
        first, count = rows[0], len(rows)
        if list(rows) == list(range(first, first + count)):
            return logits[first : first + count]
        return logits[self.ids(rows)]

    def _sample(self, raw: A, draws: Sequence[Draw[RuledSampler[A]]]) -> tuple[A, list[A]]:
        """Tokens [n] of sequences with equal rules, and what is reported with them."""
        samplers, options = [draw.sampler for draw in draws], draws[0].sampler.options
        scores = self._penalized(raw, samplers)
        if options.logit_bias:
            scores = self.add(scores, *samplers[0].bias)
        scores, candidates = self._masked(scores, draws)
        keys = [(s.seed + WEYL * (step + 1)) & WORD for _, s, step, _ in draws]
        tokens = self._draw(scores, options, keys)
        if candidates is not None:
            tokens = candidates[tokens]
        return tokens, self._reported(raw, tokens, options)

    def _penalized(self, logits: A, samplers: Sequence[RuledSampler[A]]) -> A:
        options = samplers[0].options
        seen = [sampler.seen for sampler in samplers if sampler.seen is not None]
        used = [sampler.used for sampler in samplers if sampler.used is not None]
        if seen:
            penalty = options.repetition_penalty
            stretched = self.where(logits > 0, logits / penalty, logits * penalty)
            logits = self.where(self.joined(seen), stretched, logits)
        if used:
            counts = self.joined(used)
            logits = logits - counts * options.frequency_penalty
            logits = logits - (counts > 0) * options.presence_penalty
        return logits

    def _masked(self, scores: A, draws: Sequence[Draw[RuledSampler[A]]]) -> tuple[A, A | None]:
        """(scores, None), or the scores of a few candidates and their ids [k]."""
        mask = draws[0].mask
        if mask is None:
            return scores, None
        if mask.bits is not None:
            flags = [draw.sampler.on_device(draw.mask) for draw in draws if draw.mask is not None]
            return self.where(self.joined(flags), scores, -inf), None
        ids = draws[0].sampler.on_device(mask)
        if mask.allow is not None:
            return self.columns(scores, ids), ids
        return self.ban(scores, ids), None

    def mask(self, mask: Mask) -> A:
        """Flags [1, vocabulary] of a mask of bits, else its ids that the model has."""
        if mask.bits is not None:
            size = -(-self.vocab // 8)
            return self.bits(mask.bits[:size].ljust(size, b"\0"))
        ids = mask.ban if mask.allow is None else mask.allow
        return self.ids(i for i in ids or () if i < self.vocab)

    def _draw(self, scores: A, options: Sampling, keys: Sequence[int]) -> A:
        """The places of the tokens drawn."""
        if options.temperature == 0 or options.top_k == 1:
            return self.argmax(scores)
        if options.temperature != 1:
            # Relative to the largest: a low temperature can overflow to minus infinity only.
            scores = (scores - self.max(scores)) / max(options.temperature, SMALLEST)
        places = None
        if 0 < options.top_k < scores.shape[-1]:
            # In order, so that a candidate's random number does not change with a rounding.
            scores, places = self.largest(scores, options.top_k)
        scores = self.nucleus(scores, options.top_p, options.min_p)
        drawn = self.categorical(scores, keys)
        return drawn if places is None else self.take(places, drawn)

    def nucleus(self, scores: A, top_p: float, min_p: float) -> A:
        """Scores with those outside top-p and below min-p at minus infinity.

        Tokens as probable as the last one kept are kept too.
        """
        if top_p >= 1 and min_p <= 0:
            return scores
        p = self.softmax(scores)
        if min_p > 0:
            scores = self.where(p >= self.max(p) * min_p, scores, -inf)
        if top_p < 1:
            scores = self.where(p >= self.least_of_top(p, max(top_p, SMALLEST)), scores, -inf)
        return scores

    def _reported(self, raw: A, tokens: A, options: Sampling) -> list[A]:
        """The arrays fetched together with the tokens; see `SampledChoice.fetch`."""
        check = self.finite_check(raw)
        if not (options.logprobs or options.top_logprobs):
            return [check]
        logprobs = self.log_softmax(raw)
        count = min(options.top_logprobs, self.vocab)
        if count == 0:
            return [check, self.take(logprobs, tokens)]
        values, ids = self.largest(logprobs, count)
        return [check, self.take(logprobs, tokens), ids, values]

    def finite_check(self, x: A) -> A:
        """Of each row zero, or NaN where something in it is not finite."""
        return self.sum(x * 0)

    @abstractmethod
    def ids(self, values: Iterable[int]) -> A:
        """Indices on the device, without waiting for what is queued there."""

    @abstractmethod
    def floats(self, values: Iterable[float]) -> A:
        """float32 on the device, likewise."""

    @abstractmethod
    def bits(self, packed: bytes) -> A:
        """Flags [1, vocabulary] from one bit each, the least significant of a byte first,
        likewise."""

    @abstractmethod
    def zeros(self, size: int, *, flags: bool = False) -> A:
        """[1, size] float32, or flags that are not set."""

    @abstractmethod
    def float32(self, logits: A) -> A: ...

    @abstractmethod
    def joined(self, rows: Sequence[A]) -> A:
        """[n, vocabulary] from n arrays [1, vocabulary]."""

    @abstractmethod
    def flag(self, flags: A, ids: A) -> A:
        """The flags, with those of `ids` set; `flags` itself may be written to."""

    @abstractmethod
    def add(self, scores: A, ids: A, values: A) -> A:
        """The scores, with values added at `ids` of every row, none of which occurs twice."""

    @abstractmethod
    def ban(self, scores: A, ids: A) -> A:
        """The scores, with minus infinity at `ids` of every row."""

    @abstractmethod
    def columns(self, scores: A, ids: A) -> A:
        """The scores at `ids` [k] of every row: [n, k]."""

    @abstractmethod
    def take(self, x: A, places: A) -> A:
        """The value at one place of each row: [n]."""

    @abstractmethod
    def where(self, condition: A, a: A, b: A | float) -> A: ...

    @abstractmethod
    def sum(self, x: A) -> A:
        """The sum of each row, [n]."""

    @abstractmethod
    def max(self, x: A) -> A:
        """The largest of each row, [n, 1]."""

    @abstractmethod
    def softmax(self, scores: A) -> A: ...

    @abstractmethod
    def log_softmax(self, x: A) -> A: ...

    @abstractmethod
    def argmax(self, scores: A) -> A:
        """The place of each row's largest score, of equal ones the first."""

    @abstractmethod
    def largest(self, x: A, k: int) -> tuple[A, A]:
        """The k largest of each row, the largest first, and their places: [n, k]."""

    @abstractmethod
    def least_of_top(self, p: A, top_p: float) -> A:
        """Of each row, the smallest of the largest probabilities that together reach top_p:
        [n, 1]."""

    @abstractmethod
    def categorical(self, scores: A, keys: Sequence[int]) -> A:
        """The place of one draw from the softmax of each row, the same for the same key."""

    @abstractmethod
    def fetch(self, arrays: Sequence[A], views: Sequence[A]) -> Fetch:
        """Start to compute arrays [n] or [n, k], and views of them, and to bring the arrays to the
        host's memory."""


def _group(draw: Draw[RuledSampler[A]]) -> Hashable:
    """What draws that are computed together have in common: the rules, and the mask's ids. Masks of
    bits are a row of flags each, so they need not be equal."""
    mask = draw.mask
    return draw.sampler.rules, "bits" if mask is not None and mask.bits is not None else mask
