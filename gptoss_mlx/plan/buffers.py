"""The buffers a model holds in memory, sized from its config and a few choices.

Pure arithmetic: no device, no file. `Sizes` has a subclass for each kind of machine: MLX's are
here, PyTorch's in torch_buffers.py. Buffers that are no tensors of the model were measured, as
their docstrings say: on x86-64 Linux with MLX 0.32.4 on the CPU, as the growth of resident
anonymous memory, freed memory being returned (see heap.py). Nothing has been measured on a GPU: MLX
allocates ahead of execution there, so everything it allocates for a layer counts; that was measured
as MLX's own peak on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import ClassVar

from gptoss_mlx.files.shard import ITEM_BYTES
from gptoss_mlx.models.checkpoint import expected_tensors
from gptoss_mlx.spec.config import ModelConfig

MiB = 1 << 20

CHUNKS = (512, 256, 128, 64)
"""Tokens prefilled at a time, the preferred number first."""

GROWTH = 256
"""Tokens by which an arena of keys and values grows."""

PAGE = 64
"""Tokens decoded on a GPU that are collected in a page before they are copied into the arena."""

SNAPSHOT_BUDGET = 64 * MiB
"""Bytes of snapshots a session keeps."""

RUNTIME = 98 * MiB
"""Python, MLX, numpy and the other libraries 22 MiB, the vocabulary 75. Measured after three turns
with tools and every sampling option, as resident memory beyond what MLX held; two models had the
same."""

TOGETHER = 8
"""Sequences sampled at a time, which bounds the memory that sampling takes."""

LOGITS = 18
"""Arrays of float32 [vocabulary] alive while a sequence's token is chosen: 17.6 at MLX's peak, with
penalties, top-p and log-probabilities, two steps under way."""

SCORES_BYTES = 32 * MiB
"""Bytes of scores that attention over quantized keys computes at a time."""

HEADROOM = 20 * MiB
"""A margin: benchmarks/memory/plan.py has found peaks up to 13 MiB above the sum of the other
buffers, and peaks of the same case differ by several MiB from run to run. It leaves out what the
system and other programs need; see machine.SYSTEM_SHARE."""

_KV_GROUP = 64  # values to a scale and bias of quantized keys and values
_WIDTHS = {"bfloat16": 2, "float32": 4}


def least_slots(config: ModelConfig) -> int:
    """The fewest expert slots of a layer: the experts of a token, but two at least, where the model
    has two, so that one computes while another is read."""
    return min(max(2, config.num_experts_per_tok), config.num_local_experts)


@dataclass(frozen=True)
class Buffer:
    """Memory held for one purpose, in bytes."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class Allocation:
    """The choices of a plan; see `memory.Plan` for their meaning."""

    context: int
    slots: int
    chunk: int
    cache_limit: int
    embedding: str
    rows: int = 1
    store: int = 0


@dataclass(frozen=True)
class Sizes(ABC):
    """Buffer sizes of one model on one kind of machine, and the choices allowed there."""

    config: ModelConfig
    dtype: str
    kv_bits: int | None

    gpu: ClassVar[bool]
    chunks: ClassVar[tuple[int, ...]] = CHUNKS
    """Tokens prefilled at a time, the preferred number first."""
    sacrificed: ClassVar[int] = 0
    """How many times a smaller chunk is tried before experts are streamed."""
    cache_limits: ClassVar[tuple[int, ...]]
    """Bytes of freed buffers MLX may keep, preferred first; the last where memory is short."""
    embeddings: ClassVar[tuple[str, ...]]
    """Places for the embedding, unless asked for: the first, or the last if all else fits too."""
    rows: ClassVar[tuple[int, ...]] = (1,)
    """Sequences at a time if no number is asked for, the preferred number first."""

    @abstractmethod
    def buffers(self, choice: Allocation) -> tuple[Buffer, ...]:
        """All buffers in the memory that the budget limits."""

    def host(self, choice: Allocation) -> tuple[Buffer, ...]:
        """Buffers in the host's memory, beside those on a card."""
        return ()

    @property
    def width(self) -> int:
        """Bytes of a value in the compute dtype."""
        return _WIDTHS[self.dtype]

    @cached_property
    def held(self) -> dict[str, int]:
        """Bytes of the checkpoint's tensors in memory; "experts" is one slot in every layer."""
        config = self.config
        held = dict.fromkeys(("weights", "expert biases", "embedding", "experts"), 0)
        for name, (dtype, shape) in expected_tensors(config, Path("config.json")).items():
            if name.startswith("model.embed_tokens."):
                held["embedding"] += self._embedded(name, dtype, shape)
            elif ".experts." not in name:
                held["weights"] += self._computed(name, dtype, shape)
            elif name.endswith("_bias"):
                held["expert biases"] += self._computed(name, dtype, shape)
            else:
                held["experts"] += prod(shape) * ITEM_BYTES[dtype] // config.num_local_experts
        held["weights"] += config.head_dim // 2 * 4  # the rotary frequencies
        return held

    @abstractmethod
    def _embedded(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of the embedding, in memory."""

    @abstractmethod
    def _computed(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        """Bytes of any other tensor, in memory."""

    @property
    def full_layers(self) -> int:
        return self.config.num_hidden_layers - self.sliding_layers

    @cached_property
    def sliding_layers(self) -> int:
        return sum(map(self.config.is_sliding, range(self.config.num_hidden_layers)))

    @property
    def token(self) -> int:
        """Bytes of the keys and values of one token in one layer, in the compute dtype."""
        return 2 * self.config.num_key_value_heads * self.config.head_dim * self.width

    def arena(self, context: int) -> int:
        """Bytes of the arena of keys (or of values) of one full-attention layer and sequence."""
        tokens = -(-context // GROWTH) * GROWTH
        values = self.config.num_key_value_heads * self.config.head_dim
        if self.kv_bits is None:
            return tokens * values * self.width
        return tokens * (values * self.kv_bits // 8 + -(-values // _KV_GROUP) * 2 * 4)

    @cached_property
    def rings(self) -> int:
        """Bytes of one sequence's ring buffers: keys and values of all sliding layers."""
        return self.sliding_layers * self.config.sliding_window * self.token

    @property
    def snapshots(self) -> int:
        """Bytes of the snapshots of one session."""
        return SNAPSHOT_BUDGET // self.rings * self.rings if self.rings else 0


@dataclass(frozen=True)
class MLXSizes(Sizes):
    """Buffers on MLX."""

    def buffers(self, choice: Allocation) -> tuple[Buffer, ...]:
        held, rows, resident = self.held, choice.rows, choice.embedding == "resident"
        sizes = {
            "weights": held["weights"],
            "expert biases": held["expert biases"],
            "embedding": held["embedding"] if resident else 0,
            "experts": held["experts"] * choice.slots,
            "keys and values": 2 * self.full_layers * self.arena(choice.context) * rows,
            "sliding layers": self.rings * rows,
            "pages": self.pages * rows,
            "snapshots": self.snapshots * rows,
            "prefix store": choice.store,
            "scratch": self.scratch(choice),
            "MLX's cache": choice.cache_limit,
            "runtime": RUNTIME,
            "headroom": HEADROOM,
        }
        return tuple(Buffer(name, nbytes) for name, nbytes in sizes.items())

    def _embedded(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        return prod(shape) * ITEM_BYTES[dtype]  # as the file has it

    def _computed(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        return prod(shape) * (self.width if dtype == "BF16" else ITEM_BYTES[dtype])

    @property
    def pages(self) -> int:
        """Bytes of a sequence's pages, which hold the newest tokens, where there are any."""
        return 0

    def scratch(self, choice: Allocation) -> int:
        """Peak bytes of temporary arrays: in prefill a chunk's attention or experts in one layer,
        in decoding a growing arena and the sampling of a token."""
        arena = 2 * self.arena(choice.context) if self.full_layers else 0
        writing = arena + LOGITS * self.config.vocab_size * 4 * choice.rows
        blocks = 3 * SCORES_BYTES if self.kv_bits and self.full_layers else 0
        return max(self.reading(choice, arena, blocks), writing)

    @abstractmethod
    def reading(self, choice: Allocation, arena: int, blocks: int) -> int:
        """Peak bytes of a prefill chunk in one layer.

        arena: of a growing one. blocks: of scores over quantized keys, which are computed in
        blocks; see mlx/ops/attention_quantized.py.
        """

    def _chunk_bytes(self, choice: Allocation) -> tuple[int, int, int]:
        """Bytes of a chunk's queries, keys and values; of x; and of one value for each chosen
        expert of each of its tokens."""
        config, width = self.config, self.width
        chunk = min(choice.chunk, choice.context)
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        qkv = chunk * heads * config.head_dim * width
        return qkv, chunk * config.hidden_size * width, chunk * config.num_experts_per_tok * width


@dataclass(frozen=True)
class MetalSizes(MLXSizes):
    """Buffers on a Mac's GPU."""

    gpu = True
    cache_limits = (256 * MiB, 64 * MiB)
    embeddings = ("file", "resident")

    @property
    def pages(self) -> int:
        """Bytes of a sequence's pages, which hold the newest tokens of full layers; and of what
        each of two steps under way writes anew, pages and ring buffers, while the old ones are
        still read."""
        newest = self.full_layers * PAGE * self.token if self.kv_bits is None else 0
        return newest + 2 * (newest + self.rings)

    def reading(self, choice: Allocation, arena: int, blocks: int) -> int:
        """Peak bytes of a prefill chunk in one layer, with fused attention: MLX allocates 8 arrays
        of queries, keys and values, and for the chosen experts 8 of `intermediate` and 6 of
        `hidden`."""
        config = self.config
        qkv, x, experts = self._chunk_bytes(choice)
        values = 8 * config.intermediate_size + 6 * config.hidden_size
        return 8 * qkv + 2 * x + experts * values + blocks + arena


@dataclass(frozen=True)
class MLXCPUSizes(MLXSizes):
    """Buffers where MLX computes on a CPU.

    The cache limit is small, because keeping 0, 16, 32, 64 and 256 MiB of freed buffers made no
    difference to the time of a decoded token.
    """

    gpu = False
    cache_limits = (32 * MiB,)
    embeddings = ("file",)

    def reading(self, choice: Allocation, arena: int, blocks: int) -> int:
        """Peak bytes of a prefill chunk in one layer. Attention holds the scores [heads, chunk,
        context], queries, keys and values, and x twice each; the experts hold 4 arrays of
        `intermediate` and 2 of `hidden` for every chosen expert. Each fits 20 shapes and chunks
        within 2 % of the phase."""
        config = self.config
        qkv, x, experts = self._chunk_bytes(choice)
        chunk, seen = min(choice.chunk, choice.context), choice.context
        if self.kv_bits or not self.full_layers:
            seen = min(seen, chunk + config.sliding_window - 1)
        scores = max(2 * config.num_attention_heads * chunk * seen * self.width, blocks)
        values = 4 * config.intermediate_size + 2 * config.hidden_size
        return max(scores + 2 * qkv + 2 * x, experts * values + x)
