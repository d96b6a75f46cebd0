"""The buffers a model holds in memory with PyTorch: on one NVIDIA card, or on a CPU.

Weights are in the compute dtype; 8-bit affine ones stay bytes with their scales and biases, and
those in other bits are dequantized when they are loaded. The embedding is always resident, and the
KV cache is allocated at once for every row (a row serves one sequence at a time). Figures of the
CPU were measured on x86-64 Linux with PyTorch 2.13.0, as the growth of resident memory, freed
memory being returned (see heap.py). Nothing has been measured on a card: the docstrings say which
figures are estimates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar

from gptoss_mlx.files.shard import ITEM_BYTES
from gptoss_mlx.plan.buffers import TOGETHER, Allocation, Buffer, MiB, Sizes
from gptoss_mlx.spec.config import QuantizationSpec

CUDA_CONTEXT = 504 * MiB
"""Bytes a process takes on a card before its first tensor. An estimate, for Hopper; where the card
is asked for its free memory, the error does not matter (see backend.machine_of)."""

CUBLAS = 96 * MiB
"""Workspaces of cuBLAS, 32 MiB for each of three streams on Hopper. An estimate."""

GRAPH = 16 * MiB
"""Bytes of a CUDA graph of one decode step: 500 launches and what the driver keeps of each. An
estimate."""

SPLITS = 64
"""The most splits of a sequence's attention in a decode step (split-KV): 132 multiprocessors twice
over 8 heads make 33, 131072 tokens by 4096 make 32."""

CARD_HEADROOM = 256 * MiB
"""Bytes that PyTorch's allocator loses to rounding and fragmentation. An estimate."""

CARD_RUNTIME = 1536 * MiB
"""Python, PyTorch with CUDA, Triton, the vocabulary, in the host's memory. An estimate."""

STAGING = 128 * MiB
"""Host memory that weights pass through: 8 threads, 16 MiB each. See torch/weights.py."""

STAGED = 8
"""Experts on their way from the file at a time. See torch/streaming.py."""

PACKED = 2
"""Experts repacked at a time after loading. Each is held twice, beside temporaries of 10 experts'
size. See torch/experts.py."""

SLICE = 64 * MiB
"""Bytes of an 8-bit matrix that are dequantized at a time for a prefill chunk. See
torch/triton/linear.py."""

WIDENED = 16 * MiB
"""Values of a conversion's matrix that are dequantized at a time, with 3 arrays of a byte for each
of their bits. See torch/quantized.py."""

SAMPLED, SAMPLED_ROW = 12, 4
"""Arrays of float32 [vocabulary] alive while a token is sampled: 10.6 at the peak, whatever the
options, for each of up to TOGETHER sequences; and those each sequence keeps:
logits of two steps, and which tokens were seen and used."""

CPU_RUNTIME = 224 * MiB
"""Python, PyTorch, numpy 145 MiB, the vocabulary 75."""

CPU_SHAPES = 32 * MiB
"""Bytes that oneDNN, which multiplies bfloat16, caches for shapes it has met; see
heap.keep_few_shapes."""

CPU_HEADROOM = 48 * MiB
"""A margin: with it, peaks of benchmarks/memory/plan.py --torch are 94 to 98 % of the sum; 86 to
88 % where four sequences take fewer snapshots than they may, and where a conversion's matrices are
dequantized."""

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class TorchSizes(Sizes):
    """Buffers on PyTorch."""

    cache_limits = (0,)
    embeddings = ("resident",)
    packs: ClassVar[bool] = True
    """Whether experts are repacked for kernels."""

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
        """Bytes of the buffers that stay from the first token to the last, by name."""
        held, rows = self.held, choice.rows
        return {
            "weights": held["weights"],
            "expert biases": held["expert biases"],
            "embedding": held["embedding"],
            "experts": held["experts"] * choice.slots,
            "keys and values": 2 * self.full_layers * self.arena(choice.context) * rows,
            "sliding layers": self.rings * rows,
            "snapshots": self.snapshots * rows,
            "prefix store": choice.store,
        }

    @cached_property
    def expert(self) -> int:
        """Bytes of one expert of one layer, as stored in the file."""
        return self.held["experts"] // self.config.num_hidden_layers

    @cached_property
    def matrices(self) -> dict[str, int]:
        """How many values each matrix that is multiplied as one has, by the name of a module in it:
        queries, keys and values are joined."""
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
        """Peak bytes of temporary buffers while a model is opened."""
        return max(self.packing(PACKED), STAGING + max(self._widening(), default=0))

    def _widening(self) -> Iterator[int]:
        for module, values in self.matrices.items():
            spec = self.spec(module)
            if spec is not None and not self.kept(module):
                joined = 0 if module == "lm_head" else values * self.width
                yield values * spec.bits // 8 + joined + 3 * spec.bits * WIDENED

    def packing(self, experts: int) -> int:
        """Bytes taken by repacking this many experts."""
        return (2 * experts + 10) * self.expert if self.packs else 0

    @cached_property
    def pair(self) -> int:
        """Bytes of a token's chosen experts: for each the activation, and float32 of hidden."""
        config = self.config
        each = config.intermediate_size * self.width + config.hidden_size * _FLOAT
        return config.num_experts_per_tok * each

    def streamed(self, choice: Allocation, tokens: int) -> int:
        """Bytes added where experts are streamed: repacking one, and the inputs and float32 outputs
        of a wave's tokens; 0 if all are resident."""
        config = self.config
        if choice.slots == config.num_local_experts:
            return 0
        each = config.hidden_size * (self.width + _FLOAT)
        return self.packing(1) + tokens * config.num_experts_per_tok * each

    @cached_property
    def qkv(self) -> int:
        """Bytes of a token's queries, the same rotated, its keys, values and attention output."""
        config = self.config
        heads = 3 * config.num_attention_heads + 2 * config.num_key_value_heads
        return heads * config.head_dim * self.width

    def routing(self, tokens: int) -> int:
        """Bytes of the router's float32 logits, the same sorted, and the experts' numbers."""
        return tokens * self.config.num_local_experts * (2 * _FLOAT + 8)

    def window(self, tokens: int) -> int:
        """Bytes of the keys and values that a chunk sees in a sliding layer, gathered in order."""
        return (tokens + self.config.sliding_window) * self.token if self.sliding_layers else 0

    def choosing(self, rows: int) -> int:
        """Bytes of sampling a token of each row."""
        arrays = SAMPLED * min(rows, TOGETHER) + SAMPLED_ROW * rows
        return arrays * self.config.vocab_size * _FLOAT


@dataclass(frozen=True)
class CudaSizes(TorchSizes):
    """Buffers on one NVIDIA card."""

    gpu = True
    chunks = (2048, 1024, 512)
    sacrificed = 2
    rows = (4, 2, 1)

    def buffers(self, choice: Allocation) -> tuple[Buffer, ...]:
        lasting = self.lasting(choice)
        decoding, graphs = self.decoding(choice.rows), self.graphs(choice)
        later = (
            lasting["snapshots"] + choice.store + decoding + graphs
        )  # allocated after the model is opened
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
        # Pinned memory is allocated in powers of two.
        experts = STAGED << (self.expert - 1).bit_length() if streaming else 0
        return (Buffer("runtime", CARD_RUNTIME), Buffer("pinned buffers", STAGING + experts))

    def reading(self, choice: Allocation) -> int:
        """Peak bytes of a prefill chunk in one layer: x before and after, its norm, and the update
        added to it; attention and experts both, for the allocator keeps the blocks of one while the
        other runs."""
        tokens = min(choice.chunk, choice.context)
        x = self.config.hidden_size * self.width
        chunk = tokens * (4 * x + self.qkv + self.pair) + self.routing(tokens)
        slices = SLICE if any(map(self.kept, self.matrices)) else 0
        return chunk + self.window(tokens) + slices + self.streamed(choice, tokens)

    def decoding(self, rows: int) -> int:
        """Bytes of sampling and of a decode step's arrays, which CUDA graphs keep: those of a chunk
        with one token of each row, and attention's split-KV partial results, each with a maximum
        and a sum."""
        config = self.config
        partials = config.num_attention_heads * SPLITS * (config.head_dim + 2) * _FLOAT
        x = 4 * config.hidden_size * self.width
        step = rows * (partials + x + self.qkv + self.pair) + self.routing(rows)
        return step + self.choosing(rows)

    def graphs(self, choice: Allocation) -> int:
        """Bytes of the CUDA graphs, each with logits of its own; 0 where experts are streamed,
        which cannot be captured."""
        if choice.slots < self.config.num_local_experts:
            return 0
        captured = buckets(choice.rows)
        return GRAPH * len(captured) + sum(captured) * self.config.vocab_size * _FLOAT


def buckets(rows: int) -> tuple[int, ...]:
    """Batch sizes that a decode step is captured for: 1, 2, 4, .. until one holds all rows."""
    return tuple(1 << i for i in range((rows - 1).bit_length() + 1))


@dataclass(frozen=True)
class TorchCPUSizes(TorchSizes):
    """Buffers on a CPU, with the plain operations of torch/reference.py."""

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
        """Peak bytes of temporary arrays, over all phases: opening the model, a chunk's attention
        or experts in one layer, a decode step's attention, dequantizing a matrix or an expert,
        sampling.

        Dequantizing an expert's gate and up takes 6 bytes a value. The phases fit 6 shapes within
        8 %.
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
        loading = self.loading - self.snapshots * choice.rows  # none exists yet
        return max(reading, self.step(choice), loading, self.choosing(choice.rows))

    def scores(self, tokens: int, seen: int) -> int:
        """Bytes of the scores: [heads, tokens, seen + 1] in float32, 3 times."""
        return 3 * self.config.num_attention_heads * tokens * (seen + 1) * _FLOAT

    def step(self, choice: Allocation) -> int:
        """Bytes of a decode step: for every row a copy of its keys and values, a float32 copy of
        one of both, and the scores."""
        tokens, config = choice.context, self.config
        if not self.full_layers:
            tokens = min(tokens, config.sliding_window)
        wide = config.num_key_value_heads * config.head_dim * _FLOAT
        return choice.rows * (tokens * (self.token + wide) + self.scores(1, tokens))

    @cached_property
    def matrix(self) -> int:
        """Bytes of dequantizing the largest 8-bit matrix: its values 3 times in float32."""
        kept = (values for name, values in self.matrices.items() if self.kept(name))
        return 3 * _FLOAT * max(kept, default=0)
