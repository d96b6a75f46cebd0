"""Decode speed on Macs nobody has measured: memory bandwidth, an SSD, and simulated hits.

A PREDICTION, not a measurement. A token takes the time of reading its weights from memory, and the
time the experts that were not in their banks keep it waiting:

    compute  bytes read a token / (utilisation * bandwidth)
    plain    compute + misses * expert bytes / SSD bandwidth
    ahead    as plain, but the predicted experts that are missing are read, the surest first, from
             one layer's compute before they are needed, one after the other; what has arrived by
             then is not waited for. A wrong read is stopped at that moment ("stopped") or first
             runs to its end ("finished").

Hits come from replaying synthetic routing through the product's SlotTable at the slots that the
machine's memory allows. Left out, all for the better or small: experts that are hit compute while
others are read, the page cache may still have what left the bank, and seeks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.replay import Outcome, outcomes
from benchmarks.synthetic import EXPERTS, KINDS, synthesise
from gptoss_mlx.files.shard import ITEM_BYTES
from gptoss_mlx.models.checkpoint import expected_tensors
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.recipe import RECIPES, quantization
from tests.support.checkpoints import SHAPES, config_json

GIB = 1 << 30


@dataclass(frozen=True)
class Assumptions:
    """What the prediction takes for granted. Bytes, bytes a second, tokens."""

    utilisation: float = 0.8
    """Of the memory bandwidth in decoding: what the project aims at; peers reach 0.37 to 0.55."""
    recipe: str = "8"
    """How everything but the experts is quantized."""
    context: int = 8192
    """Tokens whose keys and values (bfloat16) have room."""
    other_bytes: int = GIB
    """Prefill scratch, logits, snapshots, MLX's cache, the runtime, headroom."""
    gpu_share: float = 2 / 3
    gpu_share_large: float = 3 / 4
    large_from: int = 40 * GIB
    """Of a machine's memory the GPU may use this share, the second one from `large_from` on."""
    budget: float = math.inf
    """At most this many bytes of it are used."""
    ssd: tuple[float, ...] = (1.5e9, 3e9, 5e9, 7e9)
    routing: str = "conversation"
    worst: str = "uniform"
    """Kinds of synthetic routing."""
    warm_up: int = 200
    """Steps before hits are counted: banks are full when decoding starts."""


@dataclass(frozen=True)
class Machine:
    """bandwidth: bytes a second. memory: the sizes it is sold with, GiB, ascending."""

    chip: str
    bandwidth: float
    memory: tuple[int, ...]


MACHINES = (
    Machine("M1", 68e9, (8, 16)),
    Machine("M2", 100e9, (8, 16, 24)),
    Machine("M3", 100e9, (8, 16, 24)),
    Machine("M4", 120e9, (16, 24, 32)),
    Machine("M5", 153e9, (16, 24, 32)),
    Machine("M1 Pro", 200e9, (16, 32)),
    Machine("M4 Pro", 273e9, (24, 48, 64)),
    Machine("M1 Max", 400e9, (32, 64)),
    Machine("M2 Max", 400e9, (32, 64, 96)),
    Machine("M3 Max", 400e9, (48, 64, 128)),
    Machine("M4 Max", 546e9, (48, 64, 128)),
    Machine("M3 Ultra", 819e9, (96, 256)),
)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a released size under a recipe, the embedding's rows read from the file.

    resident: everything but the experts' matrices. layer, head: read for one token, by one layer
    (with its k experts) and outside the layers. kv: keys and values of the context.
    """

    layers: int
    experts: int
    k: int
    expert: int
    resident: int
    layer: float
    head: float
    kv: int

    @property
    def token(self) -> float:
        """Read for one token."""
        return self.layers * self.layer + self.head


def sizes(shape: str, assumptions: Assumptions) -> Sizes:
    """Of the released 20b or 120b, from its config."""
    path = Path(f"{shape}/config.json")
    values = config_json(SHAPES[shape])
    section = quantization(RECIPES[assumptions.recipe], ModelConfig.from_values(values, path))
    values |= {} if section is None else {"quantization": section}
    config = ModelConfig.from_values(values, path)
    experts, k, layers = config.num_local_experts, config.num_experts_per_tok, SHAPES[shape].layers
    matrices = rest = head = biases = 0
    for name, (dtype, extent) in expected_tensors(config, path).items():
        nbytes = math.prod(extent) * ITEM_BYTES[dtype]
        if name.endswith(("_blocks", "_scales")) and ".experts." in name:
            matrices += nbytes
        elif ".experts." in name:
            biases += nbytes
        elif name.startswith("model.layers."):
            rest += nbytes
        elif not name.startswith("model.embed_tokens."):
            head += nbytes
    row = 2 * config.num_key_value_heads * config.head_dim * 2
    tokens = sum(
        min(assumptions.context, config.sliding_window)
        if config.is_sliding(layer)
        else assumptions.context
        for layer in range(layers)
    )
    return Sizes(
        layers=layers,
        experts=experts,
        k=k,
        expert=matrices // (layers * experts),
        resident=rest + biases + head,
        layer=(rest + (matrices + biases) * k / experts) / layers,
        head=head,
        kv=row * tokens,
    )


def budget(memory_gib: int, assumptions: Assumptions) -> float:
    """Bytes that are used of a machine's memory."""
    memory = memory_gib * GIB
    large = memory >= assumptions.large_from
    share = assumptions.gpu_share_large if large else assumptions.gpu_share
    return min(memory * share, assumptions.budget)


def slots_in(memory_gib: int, size: Sizes, assumptions: Assumptions) -> int | None:
    """Slots a layer; None if a step's experts do not fit."""
    fixed = size.resident + size.kv + assumptions.other_bytes
    slots = int((budget(memory_gib, assumptions) - fixed) // (size.layers * size.expert))
    return min(slots, size.experts) if slots >= size.k else None


Shares = Mapping[Outcome, float]
"""How often each outcome occurs in one layer's step; the shares sum to 1."""


def replayed(kind: str, shape: str, slots: int, assumptions: Assumptions) -> Shares:
    """What a full bank does on one kind of synthetic routing."""
    trace = synthesise(kind, replace(KINDS[kind], experts=EXPERTS[shape]))
    counted = outcomes(trace, slots, skip=assumptions.warm_up)
    return {outcome: times / counted.total() for outcome, times in counted.items()}


def mean_misses(shares: Shares) -> float:
    """Of one layer's step."""
    return sum(share * misses for (misses, _), share in shares.items())


def waited(outcome: Outcome, window: float, read: float, *, stopped: bool) -> float:
    """Seconds one layer waits: `read` seconds an expert, reading ahead for `window` seconds."""
    misses, ahead = outcome
    if stopped:
        done = (min(max(window / read - i, 0.0), 1.0) for i in range(len(ahead)))
        return (misses - sum(part for part, right in zip(done, ahead, strict=True) if right)) * read
    begun = ahead[: math.ceil(window / read)]
    return max(0.0, len(begun) * read - window) + (misses - sum(begun)) * read


@dataclass(frozen=True)
class Rates:
    """Tokens a second with one SSD."""

    plain: float
    finished: float
    stopped: float


def rates(size: Sizes, bandwidth: float, ssd: float, found: Shares) -> Rates:
    """bandwidth: bytes a second really read from memory. ssd: bytes a second."""
    compute, window, read = size.token / bandwidth, size.layer / bandwidth, size.expert / ssd
    alone = mean_misses(found) * read

    def tokens(stopped: bool) -> float:
        ahead = sum(
            share * waited(outcome, window, read, stopped=stopped)
            for outcome, share in found.items()
        )
        # Nothing lies before the first layer.
        return 1 / (compute + alone + (size.layers - 1) * ahead)

    return Rates(1 / (compute + size.layers * alone), tokens(False), tokens(True))


@dataclass(frozen=True)
class Prediction:
    """One machine. limit: tokens a second were every expert in memory.

    slots is None where not even the experts of one step fit; then there are no rates. by_ssd and
    worst are the rates for each SSD bandwidth with usual and with worst routing, empty where all
    experts fit.
    """

    chip: str
    memory_gib: int
    slots: int | None
    limit: float
    hit_rate: float = 0.0
    by_ssd: Mapping[float, Rates] = field(default_factory=dict)
    worst: Mapping[float, Rates] = field(default_factory=dict)


def predict(shape: str, assumptions: Assumptions) -> Iterator[Prediction]:
    """Every machine up to the smallest of its memories that holds all experts."""
    size = sizes(shape, assumptions)
    known: dict[tuple[str, int], Shares] = {}

    def by_ssd(kind: str, slots: int, bandwidth: float) -> dict[float, Rates]:
        if (kind, slots) not in known:
            known[kind, slots] = replayed(kind, shape, slots, assumptions)
        found = known[kind, slots]
        return {ssd: rates(size, bandwidth, ssd, found) for ssd in assumptions.ssd}

    for machine in MACHINES:
        bandwidth = assumptions.utilisation * machine.bandwidth
        for memory in machine.memory:
            slots = slots_in(memory, size, assumptions)
            row = Prediction(machine.chip, memory, slots, bandwidth / size.token)
            if slots is None:
                yield row
                continue
            if slots == size.experts:
                yield replace(row, hit_rate=1.0)
                break
            usual = by_ssd(assumptions.routing, slots, bandwidth)
            yield replace(
                row,
                hit_rate=1 - mean_misses(known[assumptions.routing, slots]) / size.k,
                by_ssd=usual,
                worst=by_ssd(assumptions.worst, slots, bandwidth),
            )
