"""Sampling: the order in which the rules are applied, the same on every device.

Penalties, logit bias, mask, temperature, top-k, top-p and min-p, the draw. Log-probabilities are
those of the logits before all of these. A backend's `Sampler` has the operations. Only
`SampledChoice.read` waits for the device, and only for the choice, not for what is queued after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, Protocol, Self, TypeAlias, TypeVar

from gptoss_mlx.backends.protocol import Choice, SampledToken
from gptoss_mlx.spec.sampling import SMALLEST, WEYL, WORD, Mask, Sampling, check_finite

Fetch: TypeAlias = Callable[[], list[list[float]]]
"""Waits until arrays have been copied to the host's memory, and returns their values."""


class Numbers(Protocol):
    """The operations that every library's arrays have."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Self, /) -> Self: ...
    def __gt__(self, other: float, /) -> Self: ...
    def __ge__(self, other: Self, /) -> Self: ...
    def __mul__(self, other: float, /) -> Self: ...
    def __truediv__(self, other: float, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...
    def max(self) -> Self: ...


A = TypeVar("A", bound=Numbers)


@dataclass(frozen=True)
class SampledChoice(Generic[A]):
    """A sampled token, which the device may still have to compute.

    token: its id, [1], on the device. step: its number in the answer, from 0.
    fetch: brings the id; the sum of the logits, each times 0, which is 0 if all are finite; and, if
    asked for, the token's log-probability, the most probable ids and their log-probabilities.
    """

    token: A
    step: int
    fetch: Fetch

    def read(self) -> SampledToken:
        """Wait for the token. Raises NumericalError if the logits it comes from are not finite."""
        (id,), (naught,), *reported = self.fetch()
        check_finite(naught, self.step)
        if not reported:
            return SampledToken(int(id))
        (logprob,), *top = reported
        pairs = zip(*top, strict=True) if top else ()
        return SampledToken(int(id), logprob, tuple((int(i), value) for i, value in pairs))


class RuledSampler(ABC, Generic[A]):
    """Draws the tokens of one sequence under one set of options.

    prompt: token ids; vocab: size of the vocabulary. Raises SamplingError if logit_bias names a
    token that the model does not have. In the operations, scores are float32 [vocabulary], or [n]
    where a mask or top-k has left n candidates; a place is an index into the scores, as an array
    [1].
    """

    def __init__(self, options: Sampling, seed: int, prompt: Sequence[int], vocab: int) -> None:
        options.check_vocabulary(vocab)
        self.options, self.seed, self.vocab = options, seed, vocab
        self._seen: A | None = None  # flags [vocabulary]: tokens in prompt or answer
        self._used: A | None = None  # float32 [vocabulary]: how often each is in the answer
        if options.repetition_penalty != 1:
            self._seen = self.flag(self.zeros(vocab, flags=True), self.ids(sorted(set(prompt))))
        if options.presence_penalty != 0 or options.frequency_penalty != 0:
            self._used = self.zeros(vocab)
        self._one = self.floats([1])
        bias = options.logit_bias
        self._bias = (self.ids(bias), self.floats(bias.values()))
        self._mask: Mask | None = None
        self._mask_ids = self.ids(())  # or flags, of a mask of bits

    def choose(self, logits: A, step: int, mask: Mask | None) -> SampledChoice[A]:
        """Queue the choice of the answer's token number `step` (from 0): logits [vocabulary]."""
        raw = self.float32(logits)
        scores = self._penalized(raw)
        if self.options.logit_bias:
            scores = self.add(scores, *self._bias)
        scores, candidates = self._masked(scores, mask)
        token = self._draw(scores, step)
        if candidates is not None:
            token = candidates[token]
        return SampledChoice(token, step, self.fetch([token, *self._reported(raw, token)]))

    def accept(self, choice: Choice[A]) -> None:
        """Count a choice as generated: later penalties see it."""
        if self._seen is not None:
            self._seen = self.flag(self._seen, choice.token)
        if self._used is not None:
            self._used = self.add(self._used, choice.token, self._one)

    def _penalized(self, logits: A) -> A:
        options = self.options
        if self._seen is not None:
            penalty = options.repetition_penalty
            stretched = self.where(logits > 0, logits / penalty, logits * penalty)
            logits = self.where(self._seen, stretched, logits)
        if self._used is not None:
            logits = logits - self._used * options.frequency_penalty
            logits = logits - (self._used > 0) * options.presence_penalty
        return logits

    def _masked(self, scores: A, mask: Mask | None) -> tuple[A, A | None]:
        """(scores, None), or the scores of a few candidates and their ids."""
        if mask is None:
            return scores, None
        if mask is not self._mask:
            self._mask, self._mask_ids = mask, self._on_device(mask)
        if mask.bits is not None:
            return self.where(self._mask_ids, scores, -inf), None
        if mask.allow is not None:
            return scores[self._mask_ids], self._mask_ids
        return self.ban(scores, self._mask_ids), None

    def _on_device(self, mask: Mask) -> A:
        """The mask's flags or ids, without those that the model does not have."""
        if mask.bits is not None:
            size = -(-self.vocab // 8)
            return self.bits(mask.bits[:size].ljust(size, b"\0"))
        ids = mask.ban if mask.allow is None else mask.allow
        return self.ids(i for i in ids or () if i < self.vocab)

    def _draw(self, scores: A, step: int) -> A:
        """The place of the token drawn."""
        options = self.options
        if options.temperature == 0 or options.top_k == 1:
            return self.argmax(scores)
        if options.temperature != 1:
            # Relative to the largest: a low temperature can overflow to minus infinity only.
            scores = (scores - scores.max()) / max(options.temperature, SMALLEST)
        places = None
        if 0 < options.top_k < len(scores):
            scores, places = self.candidates(scores, options.top_k)
        scores = self.nucleus(scores, options.top_p, options.min_p)
        drawn = self.categorical(scores, (self.seed + WEYL * (step + 1)) & WORD)
        return drawn if places is None else places[drawn]

    def nucleus(self, scores: A, top_p: float, min_p: float) -> A:
        """Scores with those outside top-p and below min-p at minus infinity.

        Tokens as probable as the last one kept are kept too.
        """
        if top_p >= 1 and min_p <= 0:
            return scores
        p = self.softmax(scores)
        if min_p > 0:
            scores = self.where(p >= p.max() * min_p, scores, -inf)
        if top_p < 1:
            scores = self.where(p >= self.least_of_top(p, max(top_p, SMALLEST)), scores, -inf)
        return scores

    def _reported(self, raw: A, token: A) -> list[A]:
        """The arrays fetched together with the token; see `SampledChoice.fetch`."""
        naught = self.sum(raw * 0)
        if not (self.options.logprobs or self.options.top_logprobs):
            return [naught]
        logprobs = raw - self.logsumexp(raw)
        count = min(self.options.top_logprobs, self.vocab)
        if count == 0:
            return [naught, logprobs[token]]
        values, ids = self.largest(logprobs, count)
        return [naught, logprobs[token], ids, values]

    @abstractmethod
    def ids(self, values: Iterable[int]) -> A:
        """Token ids on the device, without waiting for what is queued there."""

    @abstractmethod
    def floats(self, values: Iterable[float]) -> A:
        """float32 on the device, likewise."""

    @abstractmethod
    def bits(self, packed: bytes) -> A:
        """Flags [vocabulary] from one bit each, the least significant of a byte first, likewise."""

    @abstractmethod
    def zeros(self, size: int, *, flags: bool = False) -> A:
        """[size] float32, or flags that are not set."""

    @abstractmethod
    def float32(self, logits: A) -> A: ...

    @abstractmethod
    def flag(self, flags: A, ids: A) -> A:
        """The flags, with those of `ids` set; `flags` itself may be written to."""

    @abstractmethod
    def add(self, scores: A, ids: A, values: A) -> A:
        """The scores, with values added at `ids`, none of which occurs twice."""

    @abstractmethod
    def ban(self, scores: A, ids: A) -> A:
        """The scores, with minus infinity at `ids`."""

    @abstractmethod
    def where(self, condition: A, a: A, b: A | float) -> A: ...

    @abstractmethod
    def sum(self, x: A) -> A:
        """The sum of all, [1]."""

    @abstractmethod
    def softmax(self, scores: A) -> A: ...

    @abstractmethod
    def logsumexp(self, x: A) -> A: ...

    @abstractmethod
    def argmax(self, scores: A) -> A:
        """The place of the largest score, of equal ones the first."""

    @abstractmethod
    def candidates(self, scores: A, k: int) -> tuple[A, A]:
        """The k largest scores, in any order, and their places."""

    @abstractmethod
    def largest(self, x: A, k: int) -> tuple[A, A]:
        """The k largest of x [n], the largest first, and their places."""

    @abstractmethod
    def least_of_top(self, p: A, top_p: float) -> A:
        """The smallest of the largest probabilities that together reach top_p."""

    @abstractmethod
    def categorical(self, scores: A, key: int) -> A:
        """The place of one draw from softmax(scores), the same for the same key."""

    @abstractmethod
    def fetch(self, arrays: Sequence[A]) -> Fetch:
        """Start to compute arrays [n] and to bring them to the host's memory."""
