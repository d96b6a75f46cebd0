"""What a model holds in memory, buffer by buffer, from its config and a few choices.

Pure arithmetic: no device, no file. Where a buffer is no tensor of the model, its docstring says
how it was measured: on x86-64 Linux with MLX 0.32.4 on the CPU, as the growth of resident
anonymous memory, freed memory being returned (see heap.py). Nothing has been measured on a GPU:
there MLX allocates ahead of what runs, so everything it allocates for a layer counts, which was
measured as its own peak on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from gptoss_mlx.checkpoint import expected_tensors
from gptoss_mlx.config import ModelConfig
from gptoss_mlx.shard import ITEM_BYTES

MiB = 1 << 20

GROWTH = 256
"""Tokens an arena of keys and values grows by."""

PAGE = 64
"""Tokens written one by one on a GPU that are kept apart from an arena before they go into it."""

SNAPSHOT_BUDGET = 64 * MiB
"""Bytes of snapshots a session keeps."""

RUNTIME = 98 * MiB
"""Python, MLX, numpy and the other libraries 22 MiB, the vocabulary 75: after three turns with
tools and every sampling option, what was resident beyond what MLX held, the same for two models."""

LOGITS = 18
"""Arrays of float32 [vocabulary] alive while a token is chosen: 17.6 at MLX's peak, with
penalties, top-p and log-probabilities, two steps under way."""

SCORES_BYTES = 32 * MiB
"""Scores that attention over quantized keys computes at a time."""

HEADROOM = 20 * MiB
"""More than benchmarks/bench_plan.py has found at most above the sum of the rest, 13 MiB: peaks of
the same case differ by several MiB from run to run."""

_KV_GROUP = 64  # values to a scale and bias of quantized keys and values
_WIDTHS = {"bfloat16": 2, "float32": 4}


def least_slots(config: ModelConfig) -> int:
    """A token's experts; two, where that is one, so that one computes while another is read."""
    return min(max(2, config.num_experts_per_tok), config.num_local_experts)


@dataclass(frozen=True)
class Buffer:
    """One purpose memory is held for."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class Choice:
    """What is free to choose; see `memory.Plan`."""

    context: int
    slots: int
    chunk: int
    cache_limit: int
    embedding: str


@dataclass(frozen=True)
class Sizes:
    """Sizes of one model on one kind of device."""

    config: ModelConfig
    gpu: bool
    dtype: str
    kv_bits: int | None

    @property
    def width(self) -> int:
        """Bytes of a number of the compute dtype."""
        return _WIDTHS[self.dtype]

    @cached_property
    def held(self) -> dict[str, int]:
        """Bytes of the checkpoint's tensors as they lie in memory; "experts" are one slot's."""
        config = self.config
        held = dict.fromkeys(("weights", "expert biases", "embedding", "experts"), 0)
        for name, (dtype, shape) in expected_tensors(config, Path("config.json")).items():
            nbytes = prod(shape) * ITEM_BYTES[dtype]
            if name.startswith("model.embed_tokens."):
                held["embedding"] += nbytes  # as the file has it
            elif ".experts." not in name:
                held["weights"] += self._computed(dtype, shape)
            elif name.endswith("_bias"):
                held["expert biases"] += self._computed(dtype, shape)
            else:
                held["experts"] += nbytes // config.num_local_experts
        held["weights"] += config.head_dim // 2 * 4  # the rotary frequencies
        return held

    def _computed(self, dtype: str, shape: tuple[int, ...]) -> int:
        return prod(shape) * (self.width if dtype == "BF16" else ITEM_BYTES[dtype])

    @property
    def full_layers(self) -> int:
        return self.config.num_hidden_layers - self.sliding_layers

    @cached_property
    def sliding_layers(self) -> int:
        return sum(map(self.config.is_sliding, range(self.config.num_hidden_layers)))

    def buffers(self, choice: Choice) -> tuple[Buffer, ...]:
        held, resident = self.held, choice.embedding == "resident"
        sizes = {
            "weights": held["weights"],
            "expert biases": held["expert biases"],
            "embedding": held["embedding"] if resident else 0,
            "experts": held["experts"] * choice.slots,
            "keys and values": 2 * self.full_layers * self.arena(choice.context),
            "sliding layers": self.rings,
            "pages": self.pages,
            "snapshots": SNAPSHOT_BUDGET // self.rings * self.rings if self.rings else 0,
            "scratch": self.scratch(choice),
            "MLX's cache": choice.cache_limit,
            "runtime": RUNTIME,
            "headroom": HEADROOM,
        }
        return tuple(Buffer(name, nbytes) for name, nbytes in sizes.items())

    def arena(self, context: int) -> int:
        """Keys, or values, of one full-attention layer."""
        tokens = -(-context // GROWTH) * GROWTH
        values = self.config.num_key_value_heads * self.config.head_dim
        if self.kv_bits is None:
            return tokens * values * self.width
        return tokens * (values * self.kv_bits // 8 + -(-values // _KV_GROUP) * 2 * 4)

    @cached_property
    def rings(self) -> int:
        """Keys and values of all sliding layers."""
        config = self.config
        token = 2 * config.num_key_value_heads * config.head_dim * self.width
        return self.sliding_layers * config.sliding_window * token

    @cached_property
    def pages(self) -> int:
        """On a GPU the newest tokens of full layers; and, of two steps under way, what each writes
        anew of these and of the sliding layers, while what was before is still read."""
        if not self.gpu:
            return 0
        config = self.config
        token = 2 * config.num_key_value_heads * config.head_dim * self.width
        newest = self.full_layers * PAGE * token if self.kv_bits is None else 0
        return newest + 2 * (newest + self.rings)

    def scratch(self, choice: Choice) -> int:
        """What is held for a moment: a chunk's attention or experts in one layer while prompts
        are read; a growing arena and the choice among logits while tokens are written.

        On a CPU the scores [heads, chunk, context] are there twice, queries, keys and values
        twice, and x; the experts' phase holds 4 arrays of `intermediate` and 2 of `hidden` for
        every chosen expert. Each fits 20 shapes and chunks within 2 % of the phase. On a GPU
        attention is fused; MLX allocates 8 queries, keys and values, and 8 and 6 for experts.
        Over quantized keys the scores come in blocks; see kernels/attention_quantized.py.
        """
        config, chunk, width = self.config, min(choice.chunk, choice.context), self.width
        heads = config.num_attention_heads
        qkv = chunk * (heads + 2 * config.num_key_value_heads) * config.head_dim * width
        x = chunk * config.hidden_size * width
        experts = chunk * config.num_experts_per_tok * width
        hidden, intermediate = config.hidden_size, config.intermediate_size
        arena = 2 * self.arena(choice.context) if self.full_layers else 0
        writing = arena + LOGITS * config.vocab_size * 4
        blocks = 3 * SCORES_BYTES if self.kv_bits and self.full_layers else 0
        if self.gpu:
            reading = 8 * qkv + 2 * x + experts * (8 * intermediate + 6 * hidden) + blocks
            return max(reading + arena, writing)
        seen = choice.context
        if self.kv_bits or not self.full_layers:
            seen = min(seen, chunk + config.sliding_window - 1)
        scores = max(2 * heads * chunk * seen * width, blocks)
        attention = scores + 2 * qkv + 2 * x
        return max(attention, experts * (4 * intermediate + 2 * hidden) + x, writing)
