"""The seam: what the engine needs of a backend, and all that it knows of one.

A backend makes a `Model`; the model makes states (what a sequence remembers on the device) and
samplers. Arrays, states and choices go back only to the model that they came from. So a backend is
typed by its own arrays, and the engine, which only passes them on, by none: see `sealed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.spec.sampling import Mask, Sampling


class SampledToken(NamedTuple):
    """A token that has been read. logprob, top: natural logarithms, under the model itself."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Array(Protocol):
    """Numbers on a device."""

    @property
    def nbytes(self) -> int: ...


class Snapshot(Protocol):
    """A sequence as it was at `offset` tokens; valid while those stay the same."""

    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

    def restore(self) -> None:
        """Bring the sequence back here. Raises ValueError if it has become shorter."""


class State(Protocol):
    """What one sequence remembers on the device: keys and values of `offset` tokens."""

    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

    def can_trim(self, offset: int) -> bool:
        """Whether `trim(offset)` is possible; without a snapshot, that is."""

    def trim(self, offset: int) -> None:
        """Forget all tokens from `offset` on. Raises ValueError where that is impossible."""

    def snapshot(self) -> Snapshot:
        """What `trim` could not bring back later."""

    def close(self) -> None:
        """Give the memory back; the sequence is gone."""


A = TypeVar("A")
S = TypeVar("S")
A_co = TypeVar("A_co", covariant=True)


class Choice(Protocol[A_co]):
    """A token that may still be on its way."""

    @property
    def token(self) -> A_co:
        """Its id, [1], on the device: what a step of the model reads."""

    def read(self) -> SampledToken:
        """Wait for it. Raises NumericalError if the logits were not finite."""


class Sampler(Protocol[A]):
    """Chooses the tokens of one sequence.

    What it draws at a step depends on the seed and the step alone. So a step can be chosen again
    under another mask, and a sequence repeats exactly.
    """

    def choose(self, logits: A, step: int, mask: Mask | None) -> Choice[A]:
        """Queue the choice of the answer's token number `step` (from 0): logits [vocabulary]."""

    def accept(self, choice: Choice[A]) -> None:
        """Count a choice as generated: later penalties see it."""


class Model(Protocol[S, A]):
    """A network on a device. One thread at a time computes on it.

    chunk: tokens prefilled at a time. rows: sequences that decode together; there may be more
    states, those that rest give way.
    """

    chunk: int

    @property
    def rows(self) -> int: ...
    @property
    def rejected(self) -> Mapping[str, str]:
        """Kernels that it does without here, and why."""

    def new_state(self) -> S:
        """An empty sequence."""

    def prefill(self, ids: Sequence[int], state: S) -> None:
        """Append a chunk and wait until it is in; nothing is predicted from it."""

    def evaluate(self, ids: Sequence[int], state: S) -> NDArray[np.float32]:
        """Append a chunk -> the logits after each of its tokens, [tokens, vocabulary]."""

    def decode(self, tokens: Sequence[Sequence[int] | A], states: Sequence[S]) -> Iterable[A]:
        """Append one token to each of several sequences -> float32 logits [vocabulary] of each.

        A token is [id], or the array that it will be in; nothing is waited for.
        Raises CapacityError, before anything is computed, for more sequences than `rows`.
        """

    def sampler(self, options: Sampling, seed: int, prompt: Sequence[int]) -> Sampler[A]:
        """Raises SamplingError if logit_bias names a token the model does not have."""

    def stats(self) -> dict[str, float]:
        """Bytes that the device holds: active_bytes, peak_bytes, cache_bytes; and counts of a
        backend's own."""


AnyModel: TypeAlias = "Model[State, Array]"
"""A model of whichever backend."""


def sealed(model: Model[S, A]) -> AnyModel:
    """A backend's model as the engine sees it.

    Its methods take only its own states and arrays, not any, as the type says from here on: the
    engine gives back to a model what that model made, and that is all it can give.
    """
    return cast(AnyModel, model)
