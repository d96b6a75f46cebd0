"""The interface between the engine and a backend: all that the engine needs and knows of one.

A backend makes a `Model`; the model makes states (the KV cache of a sequence) and samplers. Arrays,
states and choices go back only to the model that they came from. So a backend's types name its own
arrays, while the engine, which only passes them on, needs no such type: see `sealed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.spec.sampling import Mask, Sampling


class SampledToken(NamedTuple):
    """A token on the host. logprob, top: natural logarithms, under the unmodified logits."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Array(Protocol):
    """Numbers on a device."""

    @property
    def nbytes(self) -> int: ...


class Snapshot(Protocol):
    """A sequence as it was at `offset` tokens; valid while those tokens stay the same."""

    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

    def restore(self) -> None:
        """Bring the sequence back here. Raises ValueError if it has become shorter."""


class Segment(Protocol):
    """A copy of a part of a sequence, on the device: keys and values of full-attention layers for
    tokens `start` to `end`, and the ring buffers of sliding layers as they are at `end`."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


Layout: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
"""Arrays by name, in order: each one's dtype, as safetensors names it, and its shape."""


class State(Protocol):
    """The KV cache of one sequence on the device: keys and values of `offset` tokens."""

    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

    def can_trim(self, offset: int) -> bool:
        """Whether `trim(offset)` is possible; if not, only a snapshot brings the sequence back."""

    def trim(self, offset: int) -> None:
        """Forget all tokens from `offset` on. Raises ValueError where that is impossible."""

    def snapshot(self, back: int = 0) -> Snapshot:
        """A snapshot at the present offset, or at the one before it: a copy of what later tokens
        will overwrite."""

    def segment(self, start: int, snapshot: Snapshot) -> Segment:
        """A copy of the tokens from `start` to a snapshot of this sequence."""

    def recall(self, segment: Segment) -> Snapshot:
        """The snapshot at the end of a segment that this sequence was restored from."""

    def close(self) -> None:
        """Give the memory back; the sequence is gone."""


A = TypeVar("A")
S = TypeVar("S")
G = TypeVar("G")
D = TypeVar("D")
A_in = TypeVar("A_in", contravariant=True)
A_co = TypeVar("A_co", covariant=True)


class Choice(Protocol[A_co]):
    """A sampled token, which the device may still have to compute."""

    @property
    def token(self) -> A_co:
        """Its id, [1], on the device: the input of the model's next step."""

    def read(self) -> SampledToken:
        """Wait for the token. Raises NumericalError if the logits were not finite."""


class Sampler(Protocol[A_in]):
    """The sampling of one sequence: its options, its seed and the tokens it has accepted."""

    def accept(self, choice: Choice[A_in]) -> None:
        """Count a choice as generated: later penalties see it."""


class Draw(NamedTuple, Generic[D]):
    """A token to be chosen for one sequence: the answer's token number `step` (from 0), from row
    `row` of a step's logits.

    The random numbers depend on the seed and the step alone. So a step can be sampled again under
    another mask, and a sequence can be reproduced exactly.
    """

    row: int
    sampler: D
    step: int
    mask: Mask | None


class Model(Protocol[S, A, G, D]):
    """A network on a device. One thread at a time computes on it. It makes sequences (S), which it
    computes on arrays (A) and from segments (G), and whose tokens it draws by samplers (D).

    chunk: tokens prefilled at a time. rows: sequences that decode together; there may be more
    states, of which idle ones make room.
    """

    chunk: int

    @property
    def rows(self) -> int: ...
    @property
    def rejected(self) -> Mapping[str, str]:
        """Kernels that are not used here, and why."""

    def new_state(self) -> S:
        """An empty sequence."""

    def restore(self, segments: Sequence[G]) -> S:
        """A new sequence from segments, each of which begins where the one before ends."""

    def layout(self, tokens: int) -> Layout:
        """What a segment of so many tokens consists of."""

    def to_host(self, segment: G) -> Sequence[NDArray[np.uint8]]:
        """The bytes of a segment's arrays, in the order of `layout`; they stay as they are."""

    def from_host(self, start: int, end: int, arrays: Sequence[NDArray[np.uint8]]) -> G:
        """The segment of which `to_host` gave these bytes. A sequence that ends with it cannot be
        trimmed: nothing says whether its rings are ahead by a token."""

    def prefill(self, ids: Sequence[int], state: S) -> None:
        """Append a chunk and wait until it is in the KV cache; no logits are computed."""

    def evaluate(self, ids: Sequence[int], state: S) -> NDArray[np.float32]:
        """Append a chunk -> the logits after each of its tokens, [tokens, vocabulary]."""

    def decode(self, tokens: Sequence[Sequence[int] | A], states: Sequence[S]) -> A:
        """Append one token to each of several sequences -> float32 [sequences, vocabulary], logits.

        A token is [id], or an array that may still have to be computed; nothing is waited for.
        At most `rows` at a time: with fixed memory more is a CapacityError, before anything is
        computed.
        """

    def sampler(self, options: Sampling, seed: int, prompt: Sequence[int]) -> D:
        """Raises SamplingError if logit_bias names a token the model does not have."""

    def choose(self, logits: A, draws: Sequence[Draw[D]]) -> Sequence[Choice[A]]:
        """Queue the choice of a token for each of several sequences, from the logits of a step. A
        sequence's token does not depend on the others."""

    def stats(self) -> dict[str, float]:
        """Bytes that the device holds: active_bytes, peak_bytes, cache_bytes; and counts of a
        backend's own."""


AnyModel: TypeAlias = "Model[State, Array, Segment, Sampler[Array]]"
"""A model of whichever backend."""


def sealed(model: Model[S, A, G, D]) -> AnyModel:
    """A backend's model in the type that the engine uses.

    By this type its methods take any state and array, while they take only the model's own. The
    cast is safe because the engine gives a model only what that model has made.
    """
    return cast(AnyModel, model)
