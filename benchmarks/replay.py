"""What a bank of S slots would have made of a trace: hits, and what reading ahead is worth.

A hit is a chosen expert that is in the bank when the router names it. Rates are means over all
layers and steps, first loads included: a bank starts empty.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from benchmarks.policies import LIMIT, POLICIES, PRODUCT, Policy, loads
from benchmarks.traces import Trace

SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 0.9)
"""Slots as a share of the experts."""


def slots_for(trace: Trace, share: float) -> int | None:
    """The slots of a share of a trace's experts; None if a step does not fit them."""
    slots = round(share * trace.experts)
    return slots if slots >= trace.k else None


def hit_rate(trace: Trace, policy: Policy, slots: int) -> float:
    """Of all experts chosen."""
    missed = sum(
        sum(loads(policy, trace.stream(layer), trace.experts, slots))
        for layer in range(trace.layers)
    )
    return 1 - missed / trace.chosen.size


def compare(trace: Trace) -> dict[str, dict[float, float]]:
    """Every policy's hit rate at every share of SHARES that a step fits."""
    slots = {share: slots_for(trace, share) for share in SHARES}
    return {
        name: {
            share: hit_rate(trace, policy, count)
            for share, count in slots.items()
            if count is not None
        }
        for name, policy in POLICIES.items()
    }


def over_limit(found: dict[str, dict[float, float]]) -> dict[str, list[float]]:
    """Each policy's loads over Belady's, at every share where a policy has a choice to make."""
    limit = found[LIMIT]
    ratios: dict[str, list[float]] = {}
    for name, rates in found.items():
        pairs = [(1 - rates[share], 1 - limit[share]) for share in rates]
        # All misses are compulsory where chance does as well as the limit.
        free = [1 - found["random"][share] > 1 - limit[share] for share in rates]
        ratios[name] = [a / b for (a, b), choice in zip(pairs, free, strict=True) if choice]
    return ratios


@dataclass(frozen=True)
class Lookahead:
    """How good the look one layer ahead is; the second pair counts what is not in the bank.

    recall     share of the chosen experts that were predicted
    precision  share of the predicted experts that were chosen
    of_misses  share of the misses that were predicted
    of_reads   share of the reads ahead (predicted, not in the bank) that were chosen
    """

    recall: float
    precision: float
    of_misses: float
    of_reads: float


Outcome = tuple[int, tuple[bool, ...]]
"""Of one layer's step: misses; and of each read ahead, surest first, whether it was chosen."""


def outcomes(
    trace: Trace, slots: int, *, depth: int | None = None, skip: int = 0
) -> Counter[Outcome]:
    """How often each outcome occurs in the product's bank, in layers that anything is known of.

    depth: how many predicted experts are read, surest first; all if None. skip: steps to see before
    counting. What is read ahead in vain is not put into the simulated bank.
    """
    counted: Counter[Outcome] = Counter()
    for layer in range(trace.layers):
        foreseen = trace.foreseen(layer)
        if foreseen is None:
            continue
        stream = trace.stream(layer)
        bank = POLICIES[PRODUCT](stream, trace.experts, slots)
        for step, (chosen, predicted) in enumerate(zip(stream, foreseen, strict=True)):
            reads = [expert for expert in predicted[:depth] if expert not in bank.held]
            missing = bank.visit(chosen)
            if step >= skip:
                counted[len(missing), tuple(expert in missing for expert in reads)] += 1
    return counted


def lookahead(trace: Trace, slots: int, depth: int | None = None) -> Lookahead | None:
    """Of the first `depth` predictions; None if there are none, or none for experts not held."""
    chosen = predicted = both = 0
    for layer in range(trace.layers):
        foreseen = trace.foreseen(layer) or []
        for actual, guess in zip(trace.stream(layer), foreseen, strict=False):
            chosen, predicted = chosen + len(actual), predicted + len(guess[:depth])
            both += len(set(actual).intersection(guess[:depth]))
    counted = outcomes(trace, slots, depth=depth)
    misses = sum(missed * times for (missed, _), times in counted.items())
    reads = sum(len(ahead) * times for (_, ahead), times in counted.items())
    right = sum(sum(ahead) * times for (_, ahead), times in counted.items())
    if not reads:
        return None
    return Lookahead(both / chosen, both / predicted, right / misses, right / reads)
