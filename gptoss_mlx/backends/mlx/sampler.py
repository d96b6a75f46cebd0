"""Choosing the next token, in MLX, without waiting for the one before.

A `Sampler` belongs to one stream. Each choice is queued as a lazy array, so that the step after it
can be queued too; `Choice.read` waits. The draw at step i depends on the seed and on i alone: a
step can be chosen again under another mask, and a stream repeats exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from gptoss_mlx.spec.sampling import SMALLEST, WEYL, WORD, Mask, Sampling, check_finite


@dataclass(frozen=True)
class Choice:
    """A token that may still be on its way. token: [1] uint32.

    step: its number in the answer, from 0. naught: the logits' sum, each times 0.
    """

    token: mx.array
    step: int
    naught: mx.array
    logprob: mx.array | None = None
    top: tuple[mx.array, mx.array] | None = None

    def read(self) -> tuple[int, float | None, tuple[tuple[int, float], ...]]:
        """Wait for it: (id, log-probability, the most probable ids with theirs).

        Raises NumericalError if it was drawn from logits that are not finite.
        """
        check_finite(float(np.asarray(self.naught)), self.step)
        logprob = None if self.logprob is None else float(np.asarray(self.logprob)[0])
        top: tuple[tuple[int, float], ...] = ()
        if self.top is not None:
            ids, values = (np.asarray(a).tolist() for a in self.top)
            top = tuple(zip(ids, values, strict=True))
        return int(np.asarray(self.token)[0]), logprob, top

    def queue(self) -> None:
        """Start computing it."""
        reported = [] if self.logprob is None else [self.logprob]
        mx.async_eval(self.token, self.naught, *reported, *(self.top or ()))  # type: ignore[no-untyped-call]


class Sampler:
    """Draws tokens for one stream under one set of options."""

    def __init__(self, options: Sampling, seed: int, prompt: Sequence[int], vocab: int) -> None:
        options.check_vocabulary(vocab)
        self.options, self.seed, self.vocab = options, seed, vocab
        self._penalties = _Penalties(options, prompt, vocab)
        bias = options.logit_bias
        self._bias = (mx.array(list(bias), mx.uint32), mx.array(list(bias.values()), mx.float32))
        self._mask: Mask | None = None
        self._mask_ids = mx.array([], mx.uint32)

    def choose(self, logits: mx.array, step: int, mask: Mask | None) -> Choice:
        """Queue the choice of the step-th token from logits [vocabulary]."""
        raw = logits.astype(mx.float32)
        scores = self._penalties.apply(raw)
        if self.options.logit_bias:
            scores = scores.at[self._bias[0]].add(self._bias[1])
        scores, ids = self._masked(scores, mask)
        token = self._draw(scores, step)
        if ids is not None:
            token = ids[token]
        choice = self._report(token.astype(mx.uint32).reshape(1), step, raw)
        choice.queue()
        return choice

    def accept(self, choice: Choice) -> None:
        """Count a choice as generated: later penalties see it."""
        self._penalties.count(choice.token)

    def _masked(self, scores: mx.array, mask: Mask | None) -> tuple[mx.array, mx.array | None]:
        """(scores, None), or scores of a few candidates and their ids."""
        if mask is None:
            return scores, None
        if mask is not self._mask:
            ids = mask.ban if mask.allow is None else mask.allow
            self._mask = mask
            self._mask_ids = mx.array([i for i in ids or () if i < self.vocab], mx.uint32)
        if mask.allow is not None:
            return scores[self._mask_ids], self._mask_ids
        if self._mask_ids.size == 0:
            return scores, None
        return scores.at[self._mask_ids].add(-mx.inf), None

    def _draw(self, scores: mx.array, step: int) -> mx.array:
        options = self.options
        if options.temperature == 0 or options.top_k == 1:
            return mx.argmax(scores)
        # From the largest on, so that a low temperature overflows to minus infinity only.
        scores = (scores - scores.max()) / max(options.temperature, SMALLEST)
        kept = None
        if 0 < options.top_k < scores.size:
            kept = mx.argpartition(scores, kth=scores.size - options.top_k)[-options.top_k :]
            scores = scores[kept]
        scores = _nucleus(scores, options.top_p, options.min_p)
        key = mx.random.key((self.seed + WEYL * (step + 1)) & WORD)
        drawn = mx.random.categorical(scores, key=key)
        return drawn if kept is None else kept[drawn]

    def _report(self, token: mx.array, step: int, raw: mx.array) -> Choice:
        naught = (raw * 0).sum()
        if not (self.options.logprobs or self.options.top_logprobs):
            return Choice(token, step, naught)
        logprobs = raw - _logsumexp(raw)
        count = min(self.options.top_logprobs, self.vocab)
        if count == 0:
            return Choice(token, step, naught, logprobs[token])
        ids = mx.argpartition(-logprobs, kth=count - 1)[:count]
        ids = ids[mx.argsort(-logprobs[ids])]
        return Choice(token, step, naught, logprobs[token], (ids, logprobs[ids]))


def _nucleus(scores: mx.array, top_p: float, min_p: float) -> mx.array:
    """Scores with those outside top-p and below min-p at minus infinity.

    Tokens as probable as the last one kept are kept too.
    """
    if top_p >= 1 and min_p <= 0:
        return scores
    p = mx.softmax(scores, axis=-1)
    floor = p.max() * min_p
    if top_p < 1:
        descending = -mx.sort(-p)
        before = mx.cumsum(descending) - descending
        last = mx.where(before < max(top_p, SMALLEST), descending, mx.inf).min()
        floor = mx.maximum(floor, last)
    return mx.where(p >= floor, scores, -mx.inf)


def _logsumexp(x: mx.array) -> mx.array:
    """In two levels: on a CPU, one float32 sum over a whole vocabulary is off by 1e-4."""
    rows = mx.pad(x, (0, -x.size % 256), constant_values=-mx.inf).reshape(-1, 256)
    return mx.logsumexp(mx.logsumexp(rows, axis=-1))


class _Penalties:
    """Counts of what was said, on the device, and what they do to the logits."""

    def __init__(self, options: Sampling, prompt: Sequence[int], vocab: int) -> None:
        self.options = options
        self.repeats = options.repetition_penalty != 1
        self.counts = options.presence_penalty != 0 or options.frequency_penalty != 0
        self.seen = mx.zeros(vocab if self.repeats else 0, dtype=mx.bool_)
        self.used = mx.zeros(vocab if self.counts else 0, dtype=mx.float32)
        if self.repeats and len(prompt):
            self.seen[mx.array(sorted(set(prompt)), mx.uint32)] = True

    def apply(self, logits: mx.array) -> mx.array:
        if self.repeats:
            penalty = self.options.repetition_penalty
            stretched = mx.where(logits > 0, logits / penalty, logits * penalty)
            logits = mx.where(self.seen, stretched, logits)
        if self.counts:
            presence, frequency = self.options.presence_penalty, self.options.frequency_penalty
            logits = logits - frequency * self.used - presence * (self.used > 0)
        return logits

    def count(self, token: mx.array) -> None:
        if self.repeats:
            self.seen[token] = True
        if self.counts:
            self.used = self.used.at[token].add(1)
