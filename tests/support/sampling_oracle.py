"""How the next token is chosen, by the definition: plain float64 numpy, in the documented order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.harmony import Mask
from gptoss_mlx.spec.sampling import Sampling


@dataclass(frozen=True)
class Expected:
    """id -> probability of every token that is kept; margin: how clear the closest decision is."""

    kept: dict[int, float]
    margin: float


def permits(mask: Mask, id: int) -> bool:
    """Whether a mask permits a token."""
    return bool(flags(mask, id + 1)[id])


def flags(mask: Mask, size: int) -> NDArray[np.bool_]:
    """Of the ids below `size`, those that a mask permits."""
    found = np.full(size, mask.ban is not None)
    if mask.bits is not None:
        bits = np.unpackbits(np.frombuffer(mask.bits, np.uint8), bitorder="little")[:size]
        found[: len(bits)] = bits
    found[[id for id in mask.allow or () if id < size]] = True
    found[[id for id in mask.ban or () if id < size]] = False
    return found


def packed(ids: Collection[int], size: int) -> Mask:
    """The mask of bits that permits these of the ids below `size`."""
    flags = np.isin(np.arange(size), sorted(ids))
    return Mask(bits=np.packbits(flags, bitorder="little").tobytes())


def oracle(
    logits: NDArray[np.float32],
    options: Sampling,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
    mask: Mask | None = None,
) -> Expected:
    """What the module promises, in float64."""
    x = logits.astype(np.float64)
    for id in {*prompt, *generated}:
        penalty = options.repetition_penalty
        x[id] = x[id] / penalty if x[id] > 0 else x[id] * penalty
    for id, times in Counter(generated).items():
        x[id] -= options.presence_penalty + options.frequency_penalty * times
    for id, bias in options.logit_bias.items():
        x[id] += bias
    kept = list(range(len(x)))
    if mask is not None:
        kept = [i for i in kept if permits(mask, i)]
    kept.sort(key=lambda i: (-x[i], i))
    most = 1 if options.temperature == 0 else options.top_k or len(kept)
    margins = [x[a] - x[b] for a, b in pairwise(kept[most - 1 : most + 1])]
    kept = kept[:most]
    weights = np.exp((x[kept] - x[kept[0]]) / (options.temperature or 1))
    p = weights / weights.sum()
    before = np.cumsum(p) - p
    inside = p >= options.min_p * p[0]
    if options.top_p < 1:
        reached = p >= p[before < options.top_p].min()  # equals of the last one stay
        inside &= reached
        margins += [
            *np.abs(before[1:] - options.top_p),
            *(p[:-1] - p[1:])[reached[:-1] > reached[1:]],
        ]
    if options.min_p > 0:
        margins += np.abs(p - options.min_p * p[0])[1:].tolist()
    share = p * inside / (p * inside).sum()
    found = {id: float(q) for id, q in zip(kept, share, strict=True) if q > 0}
    return Expected(found, min(margins, default=1))
