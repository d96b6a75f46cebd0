"""What a model holds in memory with PyTorch: on one NVIDIA card, or on a CPU.

Weights lie in the compute dtype, 8-bit affine ones as bytes with their scales and biases; what a
conversion keeps in other bits is widened when it is loaded. The embedding is always resident, and
keys and values are allocated at once for every row (a sequence at a time). Figures of the CPU were
measured on x86-64 Linux with PyTorch 2.13.0, as the growth of resident memory, freed memory being
returned (see heap.py). Nothing has been measured on a card: what is an estimate there says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar

from gptoss_mlx.files.shard import ITEM_BYTES
from gptoss_mlx.plan.buffers import Allocation, Buffer, MiB, Sizes
from gptoss_mlx.spec.config import QuantizationSpec

CUDA_CONTEXT = 504 * MiB
"""What a process takes of a card before it has a tensor there. An estimate, of Hopper; where the
card is asked what is free, its error does not matter (see backend.machine_of)."""

CUBLAS = 96 * MiB
"""Workspaces of cuBLAS, 32 MiB for each of three streams on Hopper. An estimate."""

GRAPH = 16 * MiB
"""A captured step of decoding: 500 launches and what the driver keeps of each. An estimate."""

SPLITS = 64
"""Parts that a sequence's attention is divided in at most while a token is decoded: 132
multiprocessors twice over 8 heads make 33, 131072 tokens by 4096 make 32."""

CARD_HEADROOM = 256 * MiB
"""What PyTorch's allocator loses to rounding and holes. An estimate."""

CARD_RUNTIME = 1536 * MiB
"""Python, PyTorch with CUDA, Triton, the vocabulary, in the host's memory. An estimate."""

STAGING = 128 * MiB
"""Host memory that weights pass through: 8 threads, 16 MiB each. See torch/weights.py."""

STAGED = 8
"""Experts on their way from the file at a time. See torch/streaming.py."""

PACKED = 2
"""Experts rearranged at a time after loading, each there twice, and 10 of one beside them. See
torch/experts.py."""

SLICE = 64 * MiB
"""Of an 8-bit matrix, widened for a chunk. See torch/triton/linear.py."""

WIDENED = 16 * MiB
"""Values a conversion's matrix is widened by at a time: 3 arrays of a byte for each of its bits.
See torch/quantized.py."""

SAMPLED, SAMPLED_ROW = 12, 4
"""Arrays of float32 [vocabulary] alive while a token is chosen: 10.6 at the peak, whatever the
options; and what each sequence keeps: logits of two steps, what was said."""

CPU_RUNTIME = 224 * MiB
"""Python, PyTorch, numpy 145 MiB, the vocabulary 75."""

CPU_SHAPES = 32 * MiB
"""What oneDNN, which multiplies bfloat16, keeps of shapes it has met; see heap.keep_few_shapes."""

CPU_HEADROOM = 48 * MiB
"""With it, peaks of benchmarks/memory/plan.py --torch are 94 to 98 % of the sum; 86 to 88 % where
four sequences take fewer snapshots than they may, and where a conversion's matrices are widened."""

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class TorchSizes(Sizes):
    """On PyTorch."""

    cache_limits = (0,)
    embeddings = ("resident",)
    packs: ClassVar[bool] = True
    """Whether experts are rearranged for kernels."""

    def spec(self, module: str) -> QuantizationSpec | None:
        """How the checkpoint quantizes a module's matrix."""
        quantization = self.config.quantization
        return None if quantization is None else quantization.of(module)

    def kept(self, module: str) -> bool:
        """Whether a matrix stays in 8 bits: queries, keys and values only if all three do."""
        attention, dot, part = module.rpartition(".")
        joined = ("q_proj", "k_proj", "v_proj")
        names = [attention + dot + name for name in joined] if part in joined else [module]
        spec = self.spec(module)
        alike = {self.spec(name) for name in names} == {spec}
        return alike and spec is not None and (spec.bits, spec.mode) == (8, "affine")

    def _embedded(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        return self._computed(name, dtype, shape)

    def _computed(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        module, _, part = name.rpartition(".")
        quantized = part in ("scales", "biases") or dtype == "U32"
        spec = self.spec(module) if quantized else None
        if spec is None or self.kept(module):
            return prod(shape) * (self.width if dtype == "BF16" else ITEM_BYTES[dtype])
        if part == "weight":  # words of 32 bits
            return prod(shape) * 32 // spec.bits * self.width
        return 0

    def lasting(self, choice: Allocation) -> dict[str, int]:
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
    def expert(self) -> int:
        """One expert as a file has it."""
        return self.held["experts"] // self.config.num_hidden_layers

    @cached_property
    def matrices(self) -> dict[str, int]:
        """Values of the matrices that are joined and multiplied as one, by a module of each."""
        config = self.config
        width = config.num_attention_heads * config.head_dim
        qkv = width + 2 * config.num_key_value_heads * config.head_dim
        found = {"lm_head": config.vocab_size * config.hidden_size}
        for layer in range(config.num_hidden_layers):
            prefix = f"model.layers.{layer}.self_attn"
            found[f"{prefix}.q_proj"] = qkv * config.hidden_size
            found[f"{prefix}.o_proj"] = width * config.hidden_size
        return found

    @cached_property
    def loading(self) -> int:
        """The most that is there for a moment while a model is opened, beside what stays."""
        return max(self.packing(PACKED), STAGING + max(self._widening(), default=0))

    def _widening(self) -> Iterator[int]:
        for module, values in self.matrices.items():
            spec = self.spec(module)
            if spec is not None and not self.kept(module):
                joined = 0 if module == "lm_head" else values * self.width
                yield values * spec.bits // 8 + joined + 3 * spec.bits * WIDENED

    def packing(self, experts: int) -> int:
        """So many experts, being rearranged."""
        return (2 * experts + 10) * self.expert if self.packs else 0

    @cached_property
    def pair(self) -> int:
        """What a token holds for each expert it visits: the activation, and float32 of hidden."""
        config = self.config
        each = config.intermediate_size * self.width + config.hidden_size * _FLOAT
        return config.num_experts_per_tok * each

    def streamed(self, choice: Allocation, tokens: int) -> int:
        """Where experts are brought: one of them, a wave's tokens, and what it adds to the rest."""
        config = self.config
        if choice.slots == config.num_local_experts:
            return 0
        each = config.hidden_size * (self.width + _FLOAT)
        return self.packing(1) + tokens * config.num_experts_per_tok * each

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

    def choosing(self, rows: int) -> int:
        """The choice among logits."""
        return (SAMPLED + SAMPLED_ROW * rows) * self.config.vocab_size * _FLOAT


@dataclass(frozen=True)
class CudaSizes(TorchSizes):
    """On one NVIDIA card."""

    gpu = True
    chunks = (2048, 1024, 512)
    sacrificed = 2
    rows = (4, 2, 1)

    def buffers(self, choice: Allocation) -> tuple[Buffer, ...]:
        lasting = self.lasting(choice)
        decoding, graphs = self.decoding(choice.rows), self.graphs(choice)
        later = lasting["snapshots"] + decoding + graphs  # than the model is opened
        sizes = {
            **lasting,
            "scratch": max(self.reading(choice), self.loading - later),
            "decoding": decoding,
            "CUDA graphs": graphs,
            "CUDA context": CUDA_CONTEXT + CUBLAS,
            "headroom": CARD_HEADROOM,
        }
        return tuple(Buffer(name, nbytes) for name, nbytes in sizes.items())

    def host(self, choice: Allocation) -> tuple[Buffer, ...]:
        streaming = choice.slots < self.config.num_local_experts
        # Pinned memory comes in powers of two.
        experts = STAGED << (self.expert - 1).bit_length() if streaming else 0
        return (Buffer("runtime", CARD_RUNTIME), Buffer("pinned buffers", STAGING + experts))

    def reading(self, choice: Allocation) -> int:
        """A chunk in one layer: x before and after, its norm and what is added to it; attention
        and experts both, for the allocator keeps the blocks of one while the other runs."""
        tokens = min(choice.chunk, choice.context)
        x = self.config.hidden_size * self.width
        chunk = tokens * (4 * x + self.qkv + self.pair) + self.routing(tokens)
        slices = SLICE if any(map(self.kept, self.matrices)) else 0
        return chunk + self.window(tokens) + slices + self.streamed(choice, tokens)

    def decoding(self, rows: int) -> int:
        """The choice among logits, and a step's arrays, which graphs keep: those of a chunk as
        long as the rows are many, and attention's parts, each with a maximum and a sum."""
        config = self.config
        parts = config.num_attention_heads * SPLITS * (config.head_dim + 2) * _FLOAT
        x = 4 * config.hidden_size * self.width
        step = rows * (parts + x + self.qkv + self.pair) + self.routing(rows)
        return step + self.choosing(rows)

    def graphs(self, choice: Allocation) -> int:
        """Each has logits of its own. Experts that are brought cannot be captured."""
        if choice.slots < self.config.num_local_experts:
            return 0
        captured = buckets(choice.rows)
        return GRAPH * len(captured) + sum(captured) * self.config.vocab_size * _FLOAT


def buckets(rows: int) -> tuple[int, ...]:
    """Sequences that a step of decoding is captured for: 1, 2, 4, .. until it holds all rows."""
    return tuple(1 << i for i in range((rows - 1).bit_length() + 1))


@dataclass(frozen=True)
class TorchCPUSizes(TorchSizes):
    """On a CPU, with the plain operations of torch/reference.py."""

    gpu = False
    packs = False

    def buffers(self, choice: Allocation) -> tuple[Buffer, ...]:
        staged = STAGED * self.expert if choice.slots < self.config.num_local_experts else 0
        sizes = {
            **self.lasting(choice),
            "scratch": self.scratch(choice) + staged,
            "runtime": CPU_RUNTIME + (CPU_SHAPES if self.width < _FLOAT else 0),
            "headroom": CPU_HEADROOM,
        }
        return tuple(Buffer(name, nbytes) for name, nbytes in sizes.items())

    def scratch(self, choice: Allocation) -> int:
        """The most that one phase holds for a moment: opening the model, a chunk's attention or
        experts in one layer, a step's attention, a matrix or an expert becoming floats, a choice.

        An expert's gate and up take 6 bytes a value, and the phases fit 6 shapes within 8 %.
        """
        config, tokens = self.config, min(choice.chunk, choice.context)
        seen = choice.context
        if not self.full_layers:
            seen = min(seen, tokens + config.sliding_window)
        gate_up = 12 * config.intermediate_size * config.hidden_size
        experts = gate_up + tokens * self.pair + self.routing(tokens)
        chunk = tokens * (self.qkv + 4 * config.hidden_size * self.width)
        reading = chunk + max(
            self.scores(tokens, seen) + self.window(tokens),
            experts + self.streamed(choice, tokens),
            self.matrix,
        )
        loading = self.loading - self.snapshots * choice.rows  # of which none is taken then
        return max(reading, self.step(choice), loading, self.choosing(choice.rows))

    def scores(self, tokens: int, seen: int) -> int:
        """[heads, tokens, seen + 1] in float32, 3 times."""
        return 3 * self.config.num_attention_heads * tokens * (seen + 1) * _FLOAT

    def step(self, choice: Allocation) -> int:
        """A token of every row: its row's keys and values copied, one of both once more in
        float32, and the scores."""
        tokens, config = choice.context, self.config
        if not self.full_layers:
            tokens = min(tokens, config.sliding_window)
        wide = config.num_key_value_heads * config.head_dim * _FLOAT
        return choice.rows * (tokens * (self.token + wide) + self.scores(1, tokens))

    @cached_property
    def matrix(self) -> int:
        """The largest that is kept in 8 bits while it becomes floats: 3 times in float32."""
        kept = (values for name, values in self.matrices.items() if self.kept(name))
        return 3 * _FLOAT * max(kept, default=0)
