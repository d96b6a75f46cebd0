"""Sampling options, checked once.

Order: penalties, logit bias, mask, temperature, top-k, top-p, min-p, draw. Log-probabilities are
those of the model's own distribution, before all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, TypeAlias

from gptoss_mlx.errors import NumericalError, SamplingError
from gptoss_mlx.files.jsonfile import shown

MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**63 - 1
DRAWN_SEEDS = 2**53  # integers below it are exact in every JSON reader
WEYL = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: neighbouring steps get unrelated keys
WORD = 2**64 - 1
SMALLEST = 1e-30  # least temperature or top-p: a smaller one might be 0 in float32


Rules: TypeAlias = tuple[object, ...]
"""How tokens are drawn, whatever the seed. Sequences with equal rules are sampled together."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Which token ids may be sampled, in one of three forms; the other two are None.

    allow: the only ids that are allowed. ban: the ids that are banned. bits: an id is allowed if
    its bit is set, the least significant bit of the first byte being id 0; ids beyond the last
    bit are banned.
    """

    allow: tuple[int, ...] | None = None
    ban: tuple[int, ...] | None = None
    bits: bytes | None = None


@dataclass(frozen=True)
class Sampling:
    """Sampling options; the defaults leave the model's distribution as it is.

    temperature: 0 takes the most probable token. top_k: 0 keeps all.
    top_p: keep the most probable tokens that together reach it. min_p: keep tokens at least this
    fraction as probable as the first.
    repetition_penalty: divides (multiplies, if negative) the logits of all tokens seen, prompt
    included. presence_penalty, frequency_penalty: subtracted once, and once per use, from tokens
    already generated. logit_bias: token id -> added to its logit.
    seed: None draws a fresh one. logprobs: report the log-probability of every token; top_logprobs:
    and those of this many alternatives. Raises SamplingError for a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Sampling:
        """Options given by name. Raises TypeError for an unknown one."""
        known = {field.name for field in fields(cls)}
        for name in given:
            if name not in known:
                raise TypeError(f"{name!r} is no sampling option: {', '.join(sorted(known))}")
        return cls(**given)

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 100)
        _within("top_p", self.top_p, 0, 1, above=True)
        _within("top_k", self.top_k, 0, 2**31 - 1, whole=True)
        _within("min_p", self.min_p, 0, 1)
        _within("repetition_penalty", self.repetition_penalty, 0, 100, above=True)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        _within("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS, whole=True)
        if self.seed is not None:
            _within("seed", self.seed, 0, MAX_SEED, whole=True)
        if not isinstance(self.logit_bias, Mapping):
            raise SamplingError(
                f"logit_bias is {shown(self.logit_bias)}, but must map ids to numbers"
            )
        for token, bias in self.logit_bias.items():
            _within(f"logit_bias of token {shown(token)}", bias, -100, 100)
        # A copy, so that the options stay what was checked.
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))

    @property
    def rules(self) -> Rules:
        """Every option but the seed, as a value that can be a key."""
        bias = frozenset(self.logit_bias.items())
        names = (field.name for field in fields(self) if field.name not in ("seed", "logit_bias"))
        return bias, *(getattr(self, name) for name in names)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises SamplingError if logit_bias names a token the model does not have."""
        for token in self.logit_bias:
            _within("token of logit_bias", token, 0, vocab_size - 1, whole=True)


def check_finite(check: float, step: int) -> None:
    """Raises NumericalError if a step's logits are infinite or NaN.

    check: 0 if all are finite, else NaN; see `Operations.finite_check`. step: from 0.
    """
    if check != 0:
        raise not_finite(f"token {step + 1} of the answer")


def not_finite(what: str) -> NumericalError:
    """The error for logits that are infinite or NaN. what: the token they are for."""
    return NumericalError(
        f"the model's logits for {what} are not finite: its weights are damaged, or its numbers"
        " leave the range of the dtype it computes in"
    )


def _within(
    name: str, value: Any, low: float, high: float, *, above: bool = False, whole: bool = False
) -> None:
    kind: Any = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise SamplingError(f"{name} is {shown(value)}, but must be a {'whole ' * whole}number")
    if not low <= value <= high or (above and value == low):
        limit = f"above {low} and at most {high}" if above else f"from {low} to {high}"
        raise SamplingError(f"{name} is {shown(value)}, but must be {limit}")
