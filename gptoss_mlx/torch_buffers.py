"""What a model holds in memory with PyTorch: on one NVIDIA card, or on a CPU.

Weights lie in the compute dtype, 8-bit affine ones as bytes with their scales and biases; what a
conversion keeps in other bits is widened when it is loaded. The embedding is always resident, and
keys and values are allocated at once for every row (a sequence at a time). Figures of the CPU were
measured on x86-64 Linux with PyTorch 2.13.0, as the growth of resident anonymous memory, freed
memory being returned (see heap.py). Nothing has been measured on a card: what is an estimate there
says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from gptoss_mlx.buffers import LOGITS, Buffer, Choice, MiB, Sizes
from gptoss_mlx.config import QuantizationSpec
from gptoss_mlx.shard import ITEM_BYTES

CUDA_CONTEXT = 504 * MiB
"""What a process takes of a card before it has a tensor there. An estimate, of Hopper; where the
card is asked what is free, its error does not matter (see backend.machine_of)."""

CUBLAS = 96 * MiB
"""Workspaces of cuBLAS, 32 MiB on Hopper, and code of kernels as it is loaded. An estimate."""

GRAPH = 16 * MiB
"""A captured step of decoding: 500 launches and what the driver keeps of each. An estimate."""

SPLITS = 64
"""Parts that a sequence's attention may be divided in while a token is decoded."""

CARD_HEADROOM = 256 * MiB
"""What PyTorch's allocator loses to rounding and holes. An estimate."""

STAGING = 256 * MiB
"""Pinned host memory that weights and experts go through to a card."""

CARD_RUNTIME = 1536 * MiB
"""Python, PyTorch with CUDA, Triton, the vocabulary, in the host's memory. An estimate."""

CPU_RUNTIME = 224 * MiB
"""Python, PyTorch, numpy 145 MiB, the vocabulary 75."""

CPU_HEADROOM = 48 * MiB

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class TorchSizes(Sizes):
    """On PyTorch."""

    cache_limits = (0,)
    embeddings = ("resident",)

    def spec(self, module: str) -> QuantizationSpec | None:
        """How the checkpoint quantizes a module's matrix."""
        quantization = self.config.quantization
        return None if quantization is None else quantization.of(module)

    def _embedded(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        return self._computed(name, dtype, shape)

    def _computed(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        module, _, part = name.rpartition(".")
        quantized = part in ("scales", "biases") or dtype == "U32"
        spec = self.spec(module) if quantized else None
        if spec is None or kept(spec):
            return prod(shape) * (self.width if dtype == "BF16" else ITEM_BYTES[dtype])
        if part == "weight":  # words of 32 bits
            return prod(shape) * 32 // spec.bits * self.width
        return 0

    def lasting(self, choice: Choice) -> dict[str, int]:
        """What stays from the first token to the last."""
        held, rows = self.held, choice.rows
        return {
            "weights": held["weights"],
            "expert biases": held["expert biases"],
            "embedding": held["embedding"],
            "experts": held["experts"] * choice.slots,
            "keys and values": 2 * self.full_layers * self.arena(choice.context) * rows,
            "sliding layers": self.rings * rows,
            "snapshots": self.snapshots * rows,
        }

    @cached_property
    def pair(self) -> int:
        """What a token holds for each expert it visits: the activation, and float32 of hidden."""
        config = self.config
        each = config.intermediate_size * self.width + config.hidden_size * _FLOAT
        return config.num_experts_per_tok * each

    @cached_property
    def qkv(self) -> int:
        """A token's queries, keys and values, its rotated queries, and what attention gives."""
        config = self.config
        heads = 3 * config.num_attention_heads + 2 * config.num_key_value_heads
        return heads * config.head_dim * self.width

    def routing(self, tokens: int) -> int:
        """Logits in float32, sorted, with the experts' numbers."""
        return tokens * self.config.num_local_experts * (2 * _FLOAT + 8)

    def window(self, tokens: int) -> int:
        """Keys and values a chunk sees in a sliding layer, put in order."""
        return (tokens + self.config.sliding_window) * self.token if self.sliding_layers else 0


def kept(spec: QuantizationSpec) -> bool:
    """Whether PyTorch keeps such a matrix as it is."""
    return spec.mode == "affine" and spec.bits == 8


@dataclass(frozen=True)
class CudaSizes(TorchSizes):
    """On one NVIDIA card."""

    gpu = True
    chunks = (2048, 1024, 512)
    sacrificed = 2
    rows = (4, 2, 1)

    def buffers(self, choice: Choice) -> tuple[Buffer, ...]:
        sizes = {
            **self.lasting(choice),
            "scratch": self.reading(choice),
            "decoding": self.decoding(choice.rows),
            "CUDA graphs": GRAPH * len(buckets(choice.rows)),
            "CUDA context": CUDA_CONTEXT + CUBLAS,
            "headroom": CARD_HEADROOM,
        }
        return tuple(Buffer(name, nbytes) for name, nbytes in sizes.items())

    def host(self, choice: Choice) -> tuple[Buffer, ...]:
        return (Buffer("runtime", CARD_RUNTIME), Buffer("pinned buffers", STAGING))

    def reading(self, choice: Choice) -> int:
        """A chunk in one layer: x before and after, its norm and what is added to it; attention
        and experts both, for the allocator keeps the blocks of one while the other runs."""
        tokens = min(choice.chunk, choice.context)
        x = self.config.hidden_size * self.width
        chunk = tokens * (4 * x + self.qkv + self.pair) + self.routing(tokens)
        return chunk + self.window(tokens) + self.widened

    @cached_property
    def widened(self) -> int:
        """The largest 8-bit matrix that chunks meet, once in the compute dtype."""
        config = self.config
        if config.quantization is None:
            return 0
        width = config.num_attention_heads * config.head_dim
        qkv = width + 2 * config.num_key_value_heads * config.head_dim
        return max(qkv, width) * config.hidden_size * self.width

    def decoding(self, rows: int) -> int:
        """The choice among logits, and a step's arrays, which graphs keep: those of a chunk as
        long as the rows are many, and attention's parts, each with a maximum and a sum."""
        config = self.config
        logits = LOGITS * config.vocab_size * _FLOAT
        parts = config.num_attention_heads * SPLITS * (config.head_dim + 2) * _FLOAT
        x = 4 * config.hidden_size * self.width
        return rows * (logits + parts + x + self.qkv + self.pair) + self.routing(rows)


def buckets(rows: int) -> tuple[int, ...]:
    """Sequences that a step of decoding is captured for: 1, 2, 4, .. up to all rows."""
    powers = [1 << i for i in range(rows.bit_length()) if 1 << i < rows]
    return (*powers, rows)


@dataclass(frozen=True)
class TorchCPUSizes(TorchSizes):
    """On a CPU, with the plain operations of cuda/reference.py."""

    gpu = False

    def buffers(self, choice: Choice) -> tuple[Buffer, ...]:
        sizes = {
            **self.lasting(choice),
            "scratch": self.scratch(choice),
            "runtime": CPU_RUNTIME,
            "headroom": CPU_HEADROOM,
        }
        return tuple(Buffer(name, nbytes) for name, nbytes in sizes.items())

    def scratch(self, choice: Choice) -> int:
        """The most that one phase holds for a moment."""
        tokens = min(choice.chunk, choice.context)
        x = tokens * self.config.hidden_size * self.width
        reading = max(
            self.scores(tokens, self.seen(choice, tokens)) + self.window(tokens),
            self.expert + tokens * self.pair + self.routing(tokens),
        )
        writing = choice.rows * LOGITS * self.config.vocab_size * _FLOAT
        return max(reading + tokens * self.qkv + 4 * x, self.step(choice), self.matrix, writing)

    def seen(self, choice: Choice, tokens: int) -> int:
        """Keys that a chunk's queries meet at most."""
        window = tokens + self.config.sliding_window
        return choice.context if self.full_layers else min(choice.context, window)

    def scores(self, tokens: int, seen: int) -> int:
        """[heads, tokens, seen + 1] in float32 3 times, and keys and values in float32."""
        config = self.config
        scores = 3 * config.num_attention_heads * tokens * (seen + 1) * _FLOAT
        return scores + 2 * config.num_key_value_heads * seen * config.head_dim * _FLOAT

    def step(self, choice: Choice) -> int:
        """A token of every row: its row's keys and values copied, in float32, and their scores."""
        capacity = self.arena(choice.context) if self.full_layers else 0
        copies = 2 * capacity * (1 + _FLOAT // self.width)
        return choice.rows * (copies + self.scores(1, choice.context if capacity else 0))

    @property
    def expert(self) -> int:
        """Gate and up of one expert while they become float32: 25.5 bytes a value."""
        config = self.config
        return 51 * config.intermediate_size * config.hidden_size

    @cached_property
    def matrix(self) -> int:
        """lm_head while it becomes floats, 3 times in float32, where it is kept in 8 bits."""
        config = self.config
        spec = self.spec("lm_head")
        if spec is None or not kept(spec):
            return 0
        return 3 * config.vocab_size * config.hidden_size * _FLOAT
