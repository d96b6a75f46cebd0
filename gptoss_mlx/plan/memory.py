"""The plan: one list of buffers whose sum is what a model takes, made before anything is loaded.

Pure arithmetic on a config. `make_plan` chooses the context, the slots for experts, the prefill
chunk, the sequences at a time, MLX's cache limit and the embedding's place so that the sum stays
within a budget, or refuses in one line that shows the sum and the longest context that would fit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from gptoss_mlx.errors import ContextError, DeviceError, MemoryBudgetError
from gptoss_mlx.plan.buffers import (
    CHUNKS,
    GROWTH,
    Allocation,
    Buffer,
    MetalSizes,
    MiB,
    MLXCPUSizes,
    Sizes,
    least_slots,
)
from gptoss_mlx.plan.cpu_buffers import CPUSizes
from gptoss_mlx.plan.torch_buffers import CudaSizes, TorchCPUSizes
from gptoss_mlx.settings import Settings
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.system.machine import Machine
from gptoss_mlx.system.units import show_bytes

__all__ = ["CHUNKS", "Buffer", "Machine", "Plan", "make_plan", "wired_bytes"]

SIZES: Mapping[str, type[Sizes]] = {
    "metal": MetalSizes,
    "mlx cpu": MLXCPUSizes,
    "cuda": CudaSizes,
    "torch cpu": TorchCPUSizes,
    "cpu": CPUSizes,
}
"""By the machine's kind."""

WORTHWHILE = 512 * MiB
"""Bytes that halving the chunk must save to be done."""

DEFAULT_CONTEXT = 8192
"""Context planned for, if none is asked for and not every expert fits: a longer one costs slots."""

SHARED_CONTEXT = 32768
"""Context each sequence must have room for, before a plan takes several without being asked."""

STORE = 1 << 30
"""The most bytes of the prefix store, unless asked for."""

MOST_ROWS = 32
"""The most sequences at a time."""

_LEAST_CONTEXT = 1024
_STAYING = ("weights", "expert biases", "embedding", "experts", "keys and values", "sliding layers")
_OUTSIDE = ("runtime", "CUDA context", "headroom")  # not counted by the tensor library


@dataclass(frozen=True)
class Plan:
    """A memory plan: the buffers, and the choices they follow from.

    budget: bytes it must stay within, None if not known. context: tokens of prompt and answer.
    slots: experts in memory, of `experts`, in each layer. chunk: tokens prefilled at a time.
    cache_limit: bytes of freed buffers MLX may keep. embedding: "file" or "resident".
    dtype: "bfloat16" or "float32". kv_bits: 8, or None for keys and values in the compute dtype.
    gpu: whether a GPU computes. backend: "mlx", "torch" or "cpu". rows: sequences at a time. host:
    buffers in the host's memory beside a card's, which are not in the sum. store: the prefix
    store's bytes.
    Not planned for: `Engine.logits`, which keeps the logits of every token, and sequences that rest
    while others are decoded.
    """

    budget: int | None
    context: int
    slots: int
    experts: int
    chunk: int
    cache_limit: int
    embedding: str
    dtype: str
    kv_bits: int | None
    gpu: bool
    buffers: tuple[Buffer, ...]
    backend: str = "mlx"
    rows: int = 1
    host: tuple[Buffer, ...] = ()
    store: int = 0

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(buffer.nbytes for buffer in self.buffers)

    @property
    def resident(self) -> bool:
        """Whether every expert has a slot."""
        return self.slots == self.experts

    @property
    def left(self) -> int | None:
        """Bytes of the budget that the plan leaves."""
        return None if self.budget is None else self.budget - self.total

    def of(self, *names: str) -> int:
        """Bytes of the named buffers."""
        return sum(buffer.nbytes for buffer in self.buffers if buffer.name in names)


def wired_bytes(plan: Plan) -> int:
    """Bytes for MLX to wire: what stays from the first token to the last; 0 without its GPU."""
    return plan.of(*_STAYING) if plan.gpu and plan.backend == "mlx" else 0


def device_bytes(plan: Plan) -> int:
    """The most bytes MLX or PyTorch should hold, caches included: all but the process itself."""
    return plan.total - plan.of(*_OUTSIDE)


DEFAULTS = Settings()
"""Everything is left to the machine and the plan."""


def make_plan(config: ModelConfig, machine: Machine, settings: Settings = DEFAULTS) -> Plan:
    """The plan of a model on a machine, for the machine's backend.

    memory: bytes; by default `machine.budget`.
    context: tokens; by default the longest, of the model's limit and the powers of two, with which
    every expert stays in memory. If that is below DEFAULT_CONTEXT, experts are streamed, with
    DEFAULT_CONTEXT or the largest power of two below it that fits at all.
    dtype: by default bfloat16 on a GPU and float32 on a CPU.
    embedding: by default resident on MLX's GPU, if all else fits too, and always with PyTorch.
    kv_bits: 8 for quantized keys and values of full-attention layers, on MLX.
    parallel: sequences at a time; by default 1, and on a card the most of 4, 2 and 1 that leave
    every expert in memory and each sequence SHARED_CONTEXT tokens, or the context asked for.
    cache: bytes of the prefix store; by default half of what the plan leaves, up to STORE.
    Raises MemoryBudgetError with the sum and the longest context that would fit, ContextError, and
    DeviceError for what the machine's backend does not have.
    """
    most, context, memory = config.max_position_embeddings, settings.context, settings.memory
    if context is not None and not 1 < context <= most:
        raise ContextError(f"a context of {context} tokens is not within 2 to the model's {most}")
    if memory is not None and machine.memory is not None and memory > machine.memory:
        raise MemoryBudgetError(
            f"{show_bytes(memory)} are asked for, but {machine.name} has"
            f" {show_bytes(machine.memory)} in all"
        )
    _check_backend(machine.backend, settings)
    dtype = settings.dtype or ("bfloat16" if machine.gpu else "float32")
    planner = _Planner(
        SIZES[machine.kind](config, dtype, settings.kv_bits),
        machine.budget if memory is None else memory,
        context,
        settings.embedding,
        machine.backend,
        settings.parallel,
        settings.cache or 0,
    )
    choice = planner.resident() or planner.streaming()
    if choice is None:
        raise MemoryBudgetError(planner.refusal())
    if settings.cache is None and planner.budget is not None:
        choice = replace(choice, store=planner.spare(choice))
    return planner.plan(choice)


def _check_backend(backend: str, settings: Settings) -> None:
    rows, kv_bits = settings.parallel, settings.kv_bits
    if rows is not None and not 1 <= rows <= MOST_ROWS:
        raise DeviceError(f"{rows} sequences at a time are not within 1 to {MOST_ROWS}")
    if backend == "torch" and settings.embedding == "file":
        raise DeviceError("with PyTorch the embedding is always in memory, not read from the file")
    if backend == "torch" and kv_bits is not None:
        raise DeviceError(f"keys and values of {kv_bits} bits are MLX's alone")


@dataclass(frozen=True)
class _Planner:
    """Chooses a plan for one model and machine. Fields that are None were left open."""

    sizes: Sizes
    budget: int | None
    context: int | None
    embedding: str | None
    backend: str
    parallel: int | None
    store: int

    def resident(self) -> Allocation | None:
        """The choice with every expert in a slot and the longest context that allows it, or
        None."""
        experts = self.sizes.config.num_local_experts
        for context, chunk, rows in self._ways():
            for cache in self.sizes.cache_limits:
                choice = self._choice(context, chunk, cache, experts, rows)
                if self._fits(choice):
                    place = self.embedding or self.sizes.embeddings[-1]
                    roomy = replace(choice, embedding=place)
                    return roomy if self._fits(roomy) else choice
        return None

    def _ways(self) -> Iterator[tuple[int, int, int]]:
        """Candidates (context, chunk, rows) for keeping every expert, the preferred first."""
        for smaller in range(self.sizes.sacrificed + 1):
            for rows in (self.parallel,) if self.parallel else self.sizes.rows:
                least = DEFAULT_CONTEXT if self.parallel or rows == 1 else SHARED_CONTEXT
                for context in self._contexts(least, self.sizes.config.max_position_embeddings):
                    for chunk in self._chunks(context, rows)[smaller : smaller + 1]:
                        yield context, chunk, rows

    def streaming(self) -> Allocation | None:
        """The choice with as many slots as fit; None if they are not enough for one token."""
        assert self.budget is not None  # without one everything is resident
        config = self.sizes.config
        cache, rows = self.sizes.cache_limits[-1], self.parallel or 1
        for context in self._contexts(_LEAST_CONTEXT, DEFAULT_CONTEXT):
            for chunk in self._chunks(context, rows):
                choice = self._choice(context, chunk, cache, 0, rows)
                slots = (self.budget - self._total(choice)) // self.sizes.held["experts"]
                if slots >= least_slots(config):
                    return replace(choice, slots=min(slots, config.num_local_experts))
        return None

    def _chunks(self, context: int, rows: int) -> tuple[int, ...]:
        """The chunk for a context, then the smaller ones, for where nothing fits with it.

        The first is the largest whose half would not save WORTHWHILE. It does not depend on the
        budget: another chunk adds in another order, and the output must be the same to the last bit
        at any budget.
        """
        cache, chunks = self.sizes.cache_limits[-1], self.sizes.chunks
        totals = [self._total(self._choice(context, chunk, cache, 0, rows)) for chunk in chunks]
        saved = [i for i in range(1, len(chunks)) if totals[i - 1] - totals[i] >= WORTHWHILE]
        return chunks[max(saved, default=0) :]

    def _contexts(self, least: int, most: int) -> Iterator[int]:
        """The context asked for; else the model's limit or `most`, and powers of two to `least`."""
        if self.context is not None:
            yield self.context
            return
        most = min(most, self.sizes.config.max_position_embeddings)
        yield most
        for exponent in range((most - 1).bit_length() - 1, -1, -1):
            if 1 << exponent >= least:
                yield 1 << exponent

    def _choice(self, context: int, chunk: int, cache: int, slots: int, rows: int) -> Allocation:
        place = self.embedding or self.sizes.embeddings[0]
        return Allocation(context, slots, chunk, cache, place, rows, self.store)

    def _total(self, choice: Allocation) -> int:
        return sum(buffer.nbytes for buffer in self.sizes.buffers(choice))

    def _fits(self, choice: Allocation) -> bool:
        return self.budget is None or self._total(choice) <= self.budget

    def spare(self, choice: Allocation) -> int:
        """Bytes for the prefix store where nobody asked for any: half of what is left."""
        left = (self.budget or 0) - self._total(choice)
        return max(0, min(STORE, left // 2))

    def plan(self, choice: Allocation) -> Plan:
        sizes = self.sizes
        return Plan(
            budget=self.budget,
            context=choice.context,
            slots=choice.slots,
            experts=sizes.config.num_local_experts,
            chunk=choice.chunk,
            cache_limit=choice.cache_limit,
            embedding=choice.embedding,
            dtype=sizes.dtype,
            kv_bits=sizes.kv_bits,
            gpu=sizes.gpu,
            buffers=sizes.buffers(choice),
            backend=self.backend,
            rows=choice.rows,
            host=sizes.host(choice),
            store=choice.store,
        )

    def refusal(self) -> str:
        """The message of a refusal: the least sum with its largest buffers, and the longest context
        that would fit."""
        config = self.sizes.config
        least = min(_LEAST_CONTEXT, config.max_position_embeddings)
        context = self.context or least
        buffers = sorted(self.sizes.buffers(self._least(context)), key=lambda b: -b.nbytes)
        summands = [f"{buffer.name} {show_bytes(buffer.nbytes)}" for buffer in buffers[:4]]
        summands.append(f"the rest {show_bytes(sum(buffer.nbytes for buffer in buffers[4:]))}")
        needed = self._total(self._least(context))
        line = (
            f"a context of {context} tokens with {least_slots(config)} of"
            f" {config.num_local_experts} experts a layer takes {show_bytes(needed)}"
            f" ({', '.join(summands)}), but there are {show_bytes(self.budget or 0)}"
        )
        shorter = range(GROWTH, context, GROWTH)  # each takes more than the one before
        fitting = bisect_left(shorter, True, key=lambda n: not self._fits(self._least(n)))
        if fitting:
            return f"{line}; {shorter[fitting - 1]} tokens would fit"
        if context > least:
            return f"{line}; {least} tokens take {show_bytes(self._total(self._least(least)))}"
        return line

    def _least(self, context: int) -> Allocation:
        """The choice with this context that takes the fewest bytes."""
        sizes = self.sizes
        cache, slots = sizes.cache_limits[-1], least_slots(sizes.config)
        return self._choice(context, sizes.chunks[-1], cache, slots, self.parallel or 1)
