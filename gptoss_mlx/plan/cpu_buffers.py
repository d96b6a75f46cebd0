"""The buffers a model holds in memory where the kernels of native/ compute on a CPU.

Matrices stay as the file has them. Activations are float32; every array of a step is allocated when
the model is opened, so nothing but the KV cache, a step's logits and sampling grows afterwards.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod

from gptoss_mlx.files.shard import ITEM_BYTES
from gptoss_mlx.plan.buffers import TOGETHER, Allocation, Buffer, MiB, Sizes
from gptoss_mlx.spec.config import ModelConfig

PAGE = 256
"""Tokens of a page of keys and values."""

SPLIT = 1024
"""Keys of a part of a decode step's attention. See native/attention.h."""

PACKED = 512
"""Packed activations are padded to a multiple of this many. See native/planes.h."""

STRIP, LANES = 12, 16
"""Of native/product.h: outputs whose results are handed on at a time, and floats of a vector at
most."""

PANEL, PANEL_DEPTH, PANEL_BLOCK = 2 * LANES, 256, 512
"""Of native/panel.h: outputs and inputs of a panel, and rows summed at a time."""

TILE, TILE_DEPTH, WIDE, NARROW, TILE_PASS, TILE_ROOM = 1 << 10, 32, 16, 5, 6, 80 << 10
"""Of native/tiles.h: bytes and inputs of a tile, rows of a wide block of three and of a narrow one,
wide blocks packed at a time, and bytes of a strip of weights and of its sums."""

DECODED = 32
"""Of native/rows.h: rows that may lie in narrow blocks."""

QUERIES, BLOCK_KEYS, ALIGNED = 32, 64, 16
"""Of native/attention.h: rows of an item, keys of a block, and the padding of a head's values."""

RUNTIME = 112 * MiB
"""Python, numpy and the other libraries 37 MiB, the vocabulary 75."""

SAMPLED = 10
"""Arrays of float32 [vocabulary] alive while a sequence's token is chosen."""

LOGITS = 3
"""Arrays of logits alive for each sequence: of a step, the one before, and a penalty's counts."""

HEADROOM = 24 * MiB
"""A margin, for threads' stacks and what the allocator keeps."""

_FLOAT = 4
_KEYS = {"float32": 4, "bfloat16": 2, "uint8": 1}


def page_bytes(kv_heads: int, head_dim: int, type: str, places: int) -> int:
    """Bytes of a page of keys and values of one layer."""
    width = -(-head_dim // ALIGNED) * ALIGNED
    numbers = 4 * _FLOAT if type == "uint8" else 0
    return kv_heads * places * ((head_dim + width) * _KEYS[type] + numbers)


def own_bytes(config: ModelConfig) -> int:
    """Bytes of a thread's workspace, at most: a row that is packed, or a strip's results; a panel
    of widened weights and its sums; the same with the rows that visit an expert in tiles; or the
    scores of an attention item."""
    expert = max(config.hidden_size, config.intermediate_size)
    inputs = max(expert, config.num_attention_heads * config.head_dim)
    padded = -(-inputs // PACKED) * PACKED
    visits = TILE_PASS * 3 * TILE * -(-expert // TILE_DEPTH)
    tiles = TILE_ROOM + max(visits, _FLOAT * WIDE * (padded + padded // 32 + 16))
    strip = max(padded, STRIP * DECODED)
    panel = PANEL * (PANEL_DEPTH + PANEL_BLOCK) + 2 * PANEL_BLOCK
    group = config.num_attention_heads // config.num_key_value_heads
    rows = max(QUERIES, group)
    width = -(-config.head_dim // ALIGNED) * ALIGNED
    item = rows * (BLOCK_KEYS + width + 3 + 4)
    return max(_FLOAT * max(strip, panel, item), tiles)


def shared_bytes(config: ModelConfig, tokens: int) -> int:
    """Bytes of the workspace of all threads: packed activations of a step's tokens, in tiles or as
    they are, and its visits grouped by expert."""
    inputs = max(config.hidden_size, config.num_attention_heads * config.head_dim)
    padded, sums = -(-inputs // PACKED) * PACKED, -(-inputs // 32 // 16) * 16
    pairs = tokens * config.num_experts_per_tok
    tiles = max(3 * -(-tokens // WIDE), -(-min(tokens, DECODED) // NARROW))
    groups = 2 * config.num_local_experts + 2 + 2 * pairs
    tiled = tiles * TILE * padded // TILE_DEPTH
    return max(tiled, _FLOAT * tokens * padded) + _FLOAT * (tokens * sums + groups)


def partial_floats(config: ModelConfig, context: int) -> int:
    """Floats of the parts of one row's attention."""
    parts = -(-context // SPLIT)
    return parts * config.num_attention_heads * (config.head_dim + 2)


def step_floats(config: ModelConfig, tokens: int) -> dict[str, int]:
    """Floats of the arrays of a step of so many tokens, by name."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    k = config.num_experts_per_tok
    padded = -(-config.intermediate_size // PACKED) * PACKED
    return {
        "x": tokens * config.hidden_size,
        "qkv": tokens * heads * config.head_dim,
        "attended": tokens * config.num_attention_heads * config.head_dim,
        "router logits": tokens * config.num_local_experts,
        "choice": 6 * tokens * k,
        "h": tokens * k * padded,
        "visits": tokens * k * config.hidden_size,
        "angles": tokens * config.head_dim,
    }


@dataclass(frozen=True)
class CPUSizes(Sizes):
    """Buffers of backends/cpu."""

    gpu = False
    cache_limits = (0,)
    embeddings = ("file",)

    def buffers(self, choice: Allocation) -> tuple[Buffer, ...]:
        held, rows = self.held, choice.rows
        sizes = {
            "weights": held["weights"],
            "expert biases": held["expert biases"],
            "embedding": held["embedding"] if choice.embedding == "resident" else 0,
            "experts": held["experts"] * choice.slots,
            "keys and values": self.pages(choice.context) * rows,
            "sliding layers": self.rings * rows,
            "snapshots": self.snapshots * rows,
            "prefix store": choice.store,
            "scratch": self.scratch(choice),
            "sampling": self.sampling(rows),
            "runtime": RUNTIME,
            "headroom": HEADROOM,
        }
        return tuple(Buffer(name, nbytes) for name, nbytes in sizes.items())

    def _embedded(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        return prod(shape) * ITEM_BYTES[dtype]

    def _computed(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        """Matrices and the scales of affine ones as the file has them, vectors in float32."""
        module, _, part = name.rpartition(".")
        quantization = self.config.quantization
        spec = None if quantization is None else quantization.of(module)
        if part in ("weight", "scales") and spec is not None and spec.mode in ("mxfp8", "nvfp4"):
            return prod(shape) * 32 // spec.bits * _FLOAT if part == "weight" else 0
        matrix = len(shape) > 1 and not name.endswith("_bias")
        return prod(shape) * (ITEM_BYTES[dtype] if matrix else _FLOAT)

    @property
    def stored(self) -> str:
        """The type of keys and values in full-attention layers."""
        return "uint8" if self.kv_bits else self.dtype

    def pages(self, context: int) -> int:
        """Bytes of a sequence's keys and values in all full-attention layers."""
        config = self.config
        one = page_bytes(config.num_key_value_heads, config.head_dim, self.stored, PAGE)
        return self.full_layers * -(-context // PAGE) * one

    @property
    def rings(self) -> int:
        """Bytes of one sequence's ring buffers: keys and values of all sliding layers."""
        return self.sliding_layers * self.window(self.config.sliding_window)

    def window(self, tokens: int) -> int:
        """Bytes of so many tokens of one sliding layer."""
        config, places = self.config, -(-tokens // ALIGNED) * ALIGNED
        return page_bytes(config.num_key_value_heads, config.head_dim, self.dtype, places)

    def scratch(self, choice: Allocation) -> int:
        """Bytes of a step's arrays and of the threads' workspaces, allocated once: of as many
        threads as the machine has processors, which is the most unless more are asked for."""
        config = self.config
        tokens = max(min(choice.chunk, choice.context), choice.rows)
        arrays = _FLOAT * sum(step_floats(config, tokens).values())
        partials = _FLOAT * choice.rows * partial_floats(config, choice.context)
        seen = self.window(tokens + config.sliding_window) if self.sliding_layers else 0
        own = own_bytes(config) * (os.cpu_count() or 1)
        return arrays + partials + seen + own + shared_bytes(config, tokens)

    def sampling(self, rows: int) -> int:
        """Bytes of choosing a token for each row."""
        arrays = SAMPLED * min(rows, TOGETHER) + LOGITS * rows
        return arrays * self.config.vocab_size * _FLOAT
