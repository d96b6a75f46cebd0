"""Routing made up with what real routing has: popular experts, topics, and tokens that stick.

At each decode step of a layer the k experts with the largest scores are chosen. A score is

    log popularity + topic + noise

with popularity r^-zipf for the expert of rank r, ranks being another permutation in every layer;
topic a normal variable of spread `topic` that wanders as an AR(1) process, its correlation falling
to 1/e after `topic_tokens` steps; and noise drawn anew (Gumbel: it samples k experts in proportion
to exp(log popularity + topic), without replacement). Before that each expert of the step before is
chosen again with probability `sticky`. Layers are independent, so a few stand for all.

What a look one layer ahead would say is made up as well: the chosen expert with the i-th best score
is predicted with probability foresight[i], which is the tiny model's; one that is missed gives way
to one of the best scores not chosen.

`conversation` is fitted to published traces of models with 128 experts
(github.com/Helldez/BigMoeOnEdge, docs/bench-data/2026-07-15-route-trace). Of Qwen3-30B and Gemma 4,
6 experts active, 128 tokens each: 36 to 38 % of a step's experts return at the next step, 26 to
27 % eight and 22 to 24 % 32 steps later; a layer's 16 most used experts take 64 to 66 % of all
choices, its 32 most used 85 to 86 %. Here, with 6 active: 38, 30 and 26 %; 67 and 85 %.
In `skewed` popularity rules, in `drifting` recency; `uniform` is the worst case, in which no policy
but an oracle can beat chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.traces import NOBODY, Trace


@dataclass(frozen=True)
class Routing:
    """Parameters as in the module's docstring; times in decode steps."""

    zipf: float = 0.0
    topic: float = 0.0
    topic_tokens: float = 1.0
    sticky: float = 0.0
    foresight: tuple[float, ...] = (0.98, 0.91, 0.80, 0.61)
    experts: int = 32
    k: int = 4  # as many as foresight has
    layers: int = 4
    steps: int = 1200
    seed: int = 0


KINDS = {
    "conversation": Routing(zipf=0.4, topic=2.0, topic_tokens=250, sticky=0.12),
    "skewed": Routing(zipf=1.0, topic=1.5, topic_tokens=250, sticky=0.3),
    "drifting": Routing(topic=2.0, topic_tokens=40, sticky=0.3),
    "uniform": Routing(),
}
EXPERTS = {"20b": 32, "120b": 128}


def synthetic() -> Iterator[Trace]:
    """A trace of each kind for the experts of each released size, named "kind size"."""
    for size, experts in EXPERTS.items():
        for kind, routing in KINDS.items():
            yield synthesise(f"{kind} {size}", replace(routing, experts=experts))


def synthesise(name: str, routing: Routing) -> Trace:
    """The trace of these parameters; the same every time."""
    rng = np.random.default_rng([routing.seed, routing.experts])
    shape = (routing.layers, routing.experts)
    ranks = rng.permuted(np.tile(np.arange(1, routing.experts + 1), (routing.layers, 1)), axis=1)
    popularity = -routing.zipf * np.log(ranks)
    topic = rng.standard_normal(shape)
    keeps = math.exp(-1 / routing.topic_tokens)
    before = np.zeros(shape, bool)
    chosen, predicted = [], []
    for _ in range(routing.steps):
        topic = keeps * topic + math.sqrt(1 - keeps**2) * rng.standard_normal(shape)
        score = popularity + routing.topic * topic + rng.gumbel(size=shape)
        score[before & (rng.random(shape) < routing.sticky)] = np.inf
        order = np.argsort(-score, axis=1, kind="stable")
        now = order[:, : routing.k]
        before = np.zeros(shape, bool)
        np.put_along_axis(before, now, True, axis=1)
        foreseen = rng.random(now.shape) < routing.foresight
        chosen.append(now)
        predicted.append(np.where(foreseen, now, order[:, routing.k : 2 * routing.k]))
    ahead = np.stack(predicted)
    ahead[:, 0] = NOBODY  # nothing lies before the first layer
    return Trace(name, routing.experts, np.stack(chosen), ahead)
