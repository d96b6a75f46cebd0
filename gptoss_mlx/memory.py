"""The plan: one list of buffers whose sum is what a model takes, made before anything is loaded.

Pure arithmetic on a config. `make_plan` chooses the context, the slots for experts, the prefill
chunk, MLX's cache limit and the embedding's place so that the sum stays within a budget, or
refuses in one line that shows the sum and the largest thing that would fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gptoss_mlx.buffers import GROWTH, Buffer, Choice, MiB, Sizes, least_slots
from gptoss_mlx.config import ModelConfig
from gptoss_mlx.errors import ContextError, MemoryBudgetError
from gptoss_mlx.machine import Machine
from gptoss_mlx.units import show_bytes

__all__ = ["Buffer", "Machine", "Plan", "make_plan", "wired_bytes"]

CHUNKS = (512, 256, 128, 64)
"""Tokens prefilled at a time, the preferred number first."""

WORTHWHILE = 512 * MiB
"""What halving the chunk must save."""

CACHE_LIMITS = {True: (256 * MiB, 64 * MiB), False: (32 * MiB, 32 * MiB)}
"""Freed buffers MLX may keep, by whether a GPU computes; the second where memory is short.

On a CPU 0, 16, 32, 64 and 256 MiB made no difference to the time of a decoded token.
"""

DEFAULT_CONTEXT = 8192
"""Tokens planned for, unasked, where not every expert fits: a longer context costs slots."""

_LEAST_CONTEXT = 1024
_STAYING = ("weights", "expert biases", "embedding", "experts", "keys and values", "sliding layers")


@dataclass(frozen=True)
class Plan:
    """What is held, and the choices it follows from.

    budget: bytes it must stay within, None if nobody knows. context: tokens of prompt and answer.
    slots: experts in memory, of `experts`, in each layer. chunk: tokens prefilled at a time.
    cache_limit: bytes of freed buffers MLX may keep. embedding: "file" or "resident".
    dtype: "bfloat16" or "float32". kv_bits: 8, or None for keys and values as computed.
    `Engine.logits`, which keeps them for every token, takes more than is planned here, and so do
    streams that run at the same time, of which each has keys and values of its own.
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
    """Bytes to wire: what stays from the first token to the last; 0 where no GPU computes."""
    return plan.of(*_STAYING) if plan.gpu else 0


def device_bytes(plan: Plan) -> int:
    """The most MLX should hold, its cache included: all but the process itself."""
    return plan.total - plan.of("runtime", "headroom")


def make_plan(
    config: ModelConfig,
    machine: Machine,
    *,
    budget: int | None = None,
    context: int | None = None,
    dtype: str | None = None,
    embedding: str | None = None,
    kv_bits: int | None = None,
) -> Plan:
    """The plan of a model within `budget` bytes, by default the machine's limit.

    context: tokens; by default the most with which every expert stays in memory, the model's
    limit or a power of two, but if that is below DEFAULT_CONTEXT, then DEFAULT_CONTEXT, or the
    largest power of two below it that fits at all.
    dtype: "bfloat16" or "float32"; by default bfloat16 on a GPU and float32 on a CPU.
    embedding: "file" or "resident"; by default resident only on a GPU, if all else fits too.
    kv_bits: 8 for quantized keys and values of full-attention layers.
    Raises MemoryBudgetError with the sum and the largest thing that would fit, ContextError.
    """
    most = config.max_position_embeddings
    if context is not None and not 1 < context <= most:
        raise ContextError(f"a context of {context} tokens is not within 2 to the model's {most}")
    if budget is not None and machine.memory is not None and budget > machine.memory:
        raise MemoryBudgetError(
            f"{show_bytes(budget)} are asked for, but {machine.name} has"
            f" {show_bytes(machine.memory)} in all"
        )
    dtype = dtype or ("bfloat16" if machine.gpu else "float32")
    planner = _Planner(
        Sizes(config, machine.gpu, dtype, kv_bits),
        machine.limit if budget is None else budget,
        context,
        embedding,
    )
    choice = planner.resident() or planner.streaming()
    if choice is None:
        raise MemoryBudgetError(planner.refusal())
    return planner.plan(choice)


@dataclass(frozen=True)
class _Planner:
    """One question: the sizes, and what was asked. context, embedding: None leaves it open."""

    sizes: Sizes
    budget: int | None
    context: int | None
    embedding: str | None

    def resident(self) -> Choice | None:
        """Every expert in a slot, with the longest context that allows it."""
        config = self.sizes.config
        for context in self._contexts(DEFAULT_CONTEXT, config.max_position_embeddings):
            chunk = self._chunks(context)[0]
            for cache in CACHE_LIMITS[self.sizes.gpu]:
                choice = self._choice(context, chunk, cache, config.num_local_experts)
                if self._fits(choice):
                    roomy = replace(choice, embedding="resident")
                    free = self.embedding is None and self.sizes.gpu
                    return roomy if free and self._fits(roomy) else choice
        return None

    def streaming(self) -> Choice | None:
        """As many slots as fit, if they are enough for one token."""
        assert self.budget is not None  # without one everything is resident
        config = self.sizes.config
        cache = CACHE_LIMITS[self.sizes.gpu][1]
        for context in self._contexts(_LEAST_CONTEXT, DEFAULT_CONTEXT):
            for chunk in self._chunks(context):
                choice = self._choice(context, chunk, cache, 0)
                slots = (self.budget - self._total(choice)) // self.sizes.held["experts"]
                if slots >= least_slots(config):
                    return replace(choice, slots=min(slots, config.num_local_experts))
        return None

    def _chunks(self, context: int) -> tuple[int, ...]:
        """The chunk for a context, and smaller ones for where nothing would fit with it.

        The largest whose half would not save WORTHWHILE. It does not depend on the budget: another
        chunk adds in another order, and the output must be the same to the last bit at any budget.
        """
        cache = CACHE_LIMITS[self.sizes.gpu][1]
        totals = [self._total(self._choice(context, chunk, cache, 0)) for chunk in CHUNKS]
        saved = [i for i in range(1, len(CHUNKS)) if totals[i - 1] - totals[i] >= WORTHWHILE]
        return CHUNKS[max(saved, default=0) :]

    def _contexts(self, least: int, most: int) -> Iterator[int]:
        """What was asked; else the model's limit or `most`, and the powers of two to `least`."""
        if self.context is not None:
            yield self.context
            return
        most = min(most, self.sizes.config.max_position_embeddings)
        yield most
        for exponent in range((most - 1).bit_length() - 1, -1, -1):
            if 1 << exponent >= least:
                yield 1 << exponent

    def _choice(self, context: int, chunk: int, cache: int, slots: int) -> Choice:
        return Choice(context, slots, chunk, cache, self.embedding or "file")

    def _total(self, choice: Choice) -> int:
        return sum(buffer.nbytes for buffer in self.sizes.buffers(choice))

    def _fits(self, choice: Choice) -> bool:
        return self.budget is None or self._total(choice) <= self.budget

    def plan(self, choice: Choice) -> Plan:
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
        )

    def refusal(self) -> str:
        """The least sum and its largest parts, and the longest context that would fit."""
        config = self.sizes.config
        least = min(_LEAST_CONTEXT, config.max_position_embeddings)
        context = self.context or least
        buffers = sorted(self.sizes.buffers(self._least(context)), key=lambda b: -b.nbytes)
        parts = [f"{buffer.name} {show_bytes(buffer.nbytes)}" for buffer in buffers[:4]]
        parts.append(f"the rest {show_bytes(sum(buffer.nbytes for buffer in buffers[4:]))}")
        needed = self._total(self._least(context))
        line = (
            f"a context of {context} tokens with {least_slots(config)} of"
            f" {config.num_local_experts} experts a layer takes {show_bytes(needed)}"
            f" ({', '.join(parts)}), but there are {show_bytes(self.budget or 0)}"
        )
        shorter = range(context - 1 - (context - 1) % GROWTH, 0, -GROWTH)
        fitting = next((tokens for tokens in shorter if self._fits(self._least(tokens))), None)
        if fitting is not None:
            return f"{line}; {fitting} tokens would fit"
        if context > least:
            return f"{line}; {least} tokens take {show_bytes(self._total(self._least(least)))}"
        return line

    def _least(self, context: int) -> Choice:
        """The choice of this context that takes the least."""
        cache = CACHE_LIMITS[self.sizes.gpu][1]
        return self._choice(context, CHUNKS[-1], cache, least_slots(self.sizes.config))
