"""Choosing the next token, in PyTorch, without waiting for the one before: the twin of sampler.py.

A `Sampler` belongs to one stream and stays on the logits' device. Nothing here but `Choice.read`
waits for a card, and that only for the choice itself, not for what was queued behind it. The draw
at step i depends on the seed and on i alone: a step can be chosen again under another mask, and a
stream repeats exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from gptoss_mlx.spec.sampling import SMALLEST, WEYL, WORD, Mask, Sampling, check_finite

_WHOLE = 2**52  # what a probability of 1 is when counted in whole numbers


class Choice:
    """A token that may still be on its way. token: [1] int64, on the device.

    step: its number in the answer, from 0. naught: the logits' sum, each times 0: [1].
    """

    def __init__(
        self,
        token: torch.Tensor,
        step: int,
        naught: torch.Tensor,
        logprob: torch.Tensor | None = None,
        top: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self.token, self.step, self.naught = token, step, naught
        self.logprob, self.top = logprob, top
        self._copy: _Copy | None = None

    def read(self) -> tuple[int, float | None, tuple[tuple[int, float], ...]]:
        """Wait for it: (id, log-probability, the most probable ids with theirs).

        Raises NumericalError if it was drawn from logits that are not finite.
        """
        self.queue()
        assert self._copy is not None
        token, naught, *values = self._copy.read()
        check_finite(naught, self.step)
        logprob = None if self.logprob is None else values[0]
        count = 0 if self.top is None else len(self.top[0])
        ids, found = values[1 : 1 + count], values[1 + count :]
        return int(token), logprob, tuple((int(i), v) for i, v in zip(ids, found, strict=True))

    def queue(self) -> None:
        """Start its way to the host's memory."""
        if self._copy is None:
            reported = [] if self.logprob is None else [self.logprob]
            columns = (self.token, self.naught, *reported, *(self.top or ()))
            # One copy brings all; beside float32, ids become that, which is exact below 2^24.
            self._copy = _Copy(torch.cat(columns))


class _Copy:
    """The host's copy of a few numbers."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._numbers.tolist()


class Sampler:
    """Draws tokens for one stream under one set of options.

    The logits given to `choose` are on `device`; prompt: token ids; vocab: their number.
    Raises SamplingError if logit_bias names a token the model does not have.
    """

    def __init__(
        self,
        options: Sampling,
        seed: int,
        prompt: Sequence[int],
        vocab: int,
        device: torch.device | str = "cpu",
    ) -> None:
        options.check_vocabulary(vocab)
        self.options, self.seed, self.vocab = options, seed, vocab
        self._device = torch.device(device)
        self._generator = torch.Generator(self._device)
        self._penalties = _Penalties(options, prompt, vocab, self._device)
        bias = options.logit_bias
        self._bias_ids = _send(bias, torch.int64, self._device)
        self._bias = _send(bias.values(), torch.float32, self._device)
        self._mask: Mask | None = None
        self._mask_ids = _send((), torch.int64, self._device)

    def choose(self, logits: torch.Tensor, step: int, mask: Mask | None) -> Choice:
        """Queue the choice of the step-th token from logits [vocabulary]."""
        raw = logits.float()
        scores = self._penalties.apply(raw)
        if self.options.logit_bias:
            scores = scores.index_add(0, self._bias_ids, self._bias)
        scores, ids = self._masked(scores, mask)
        token = self._draw(scores, step)
        if ids is not None:
            token = ids[token]
        choice = self._report(token, step, raw)
        choice.queue()
        return choice

    def accept(self, choice: Choice) -> None:
        """Count a choice as generated: later penalties see it."""
        self._penalties.count(choice.token)

    def _masked(
        self, scores: torch.Tensor, mask: Mask | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(scores, None), or scores of a few candidates and their ids."""
        if mask is None:
            return scores, None
        if mask is not self._mask:
            ids = mask.ban if mask.allow is None else mask.allow
            self._mask = mask
            known = [i for i in ids or () if i < self.vocab]
            self._mask_ids = _send(known, torch.int64, self._device)
        if mask.allow is not None:
            return scores[self._mask_ids], self._mask_ids
        return scores.index_fill(0, self._mask_ids, -torch.inf), None

    def _draw(self, scores: torch.Tensor, step: int) -> torch.Tensor:
        """The place in scores [n] of the token drawn: [1] int64."""
        options = self.options
        if options.temperature == 0 or options.top_k == 1:
            return scores.argmax(0, keepdim=True)
        if options.temperature != 1:
            # From the largest on, so that a low temperature overflows to minus infinity only.
            scores = (scores - scores.max()) / max(options.temperature, SMALLEST)
        kept = None
        if 0 < options.top_k < len(scores):
            scores, kept = largest(scores, options.top_k)
        scores = nucleus(scores, options.top_p, options.min_p)
        self._generator.manual_seed(_key(self.seed, step))
        drawn = categorical(scores, self._generator)
        return drawn if kept is None else kept[drawn]

    def _report(self, token: torch.Tensor, step: int, raw: torch.Tensor) -> Choice:
        naught = (raw * 0).sum(0, keepdim=True)
        if not (self.options.logprobs or self.options.top_logprobs):
            return Choice(token, step, naught)
        logprobs = raw - raw.logsumexp(0)
        count = min(self.options.top_logprobs, self.vocab)
        if count == 0:
            return Choice(token, step, naught, logprobs[token])
        values, ids = largest(logprobs, count)
        return Choice(token, step, naught, logprobs[token], (ids, values))


def largest(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of x [n] and their places, the largest first; of equals the first ones.

    Sorted, because which of equal values topk takes is left open.
    """
    values, places = x.sort(descending=True, stable=True)
    return values[:k], places[:k]


def nucleus(scores: torch.Tensor, top_p: float, min_p: float) -> torch.Tensor:
    """Scores [n] with those outside top-p and below min-p at minus infinity.

    Tokens as probable as the last one kept are kept too.
    """
    if top_p >= 1 and min_p <= 0:
        return scores
    p = scores.softmax(0)
    floor = p.max() * min_p
    if top_p < 1:
        descending = p.sort(descending=True).values
        # Counted in whole numbers: a card adds floats in another order every time.
        parts = (descending.double() * _WHOLE).long()
        before = parts.cumsum(0) - parts
        last = descending.masked_fill(before >= math.ceil(top_p * _WHOLE), torch.inf).min()
        floor = torch.maximum(floor, last)
    return scores.masked_fill(p < floor, -torch.inf)


def categorical(scores: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A draw with the probabilities softmax(scores): scores [n] -> [1] int64.

    Whose exponentially distributed time, at the rate exp(score), is the smallest. In float64: in
    float32 a token of one in a hundred million would never come.
    """
    uniform = torch.rand(
        scores.shape, generator=generator, dtype=torch.float64, device=scores.device
    )  # below 1, so that no time is 0
    return (scores - uniform.log_().neg_().log_()).argmax(0, keepdim=True)


def _key(seed: int, step: int) -> int:
    """The step-th number of splitmix64 (Steele, Lea and Flood, 2014).

    Mixed, because a CPU's generator looks at 32 bits only.
    """
    z = (seed + WEYL * (step + 1)) & WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31


def _send(values: Iterable[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers -> [n] on the device, without waiting for what is queued there."""
    host = torch.tensor(list(values), dtype=dtype)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


class _Penalties:
    """Counts of what was said, on the device, and what they do to the logits."""

    def __init__(
        self, options: Sampling, prompt: Sequence[int], vocab: int, device: torch.device
    ) -> None:
        self.options = options
        self.repeats = options.repetition_penalty != 1
        self.counts = options.presence_penalty != 0 or options.frequency_penalty != 0
        self.seen = torch.zeros(vocab if self.repeats else 0, dtype=torch.bool, device=device)
        self.used = torch.zeros(vocab if self.counts else 0, device=device)
        if self.repeats:
            self.seen.index_fill_(0, _send(set(prompt), torch.int64, device), True)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.repeats:
            penalty = self.options.repetition_penalty
            stretched = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self.seen, stretched, logits)
        if self.counts:
            presence, frequency = self.options.presence_penalty, self.options.frequency_penalty
            logits = logits - frequency * self.used - presence * (self.used > 0)
        return logits

    def count(self, token: torch.Tensor) -> None:
        if self.repeats:
            self.seen.index_fill_(0, token, True)
        if self.counts:
            self.used.index_add_(0, token, torch.ones_like(token, dtype=torch.float32))
