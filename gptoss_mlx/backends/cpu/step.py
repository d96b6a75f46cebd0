"""The arrays of one step: of a prompt's chunk, or of one token of each of several sequences.

They are allocated once, for the largest step, and used by every layer; so the kernels' arguments
can be made once for each number of tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.cpu.library import Device
from gptoss_mlx.backends.cpu.weights import allocate
from gptoss_mlx.plan.cpu_buffers import partial_floats, step_floats
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.rope import periods

Array: TypeAlias = NDArray[Any]
Kernel: TypeAlias = Callable[..., object]
Call: TypeAlias = Callable[[], object]


class Buffers:
    """Arrays for steps of up to `tokens` tokens, and of up to `rows` sequences.

    x [tokens, hidden] is the residual stream; qkv, attended, logits (the router's), ids and weights
    (of chosen experts), h and out (of visits) are what a layer's operations write. row and place
    [tokens * k] number the visits: the token of each, and itself. guess [rows, k], with its logits
    and weights: what the next layer's router would choose.
    """

    def __init__(self, config: ModelConfig, tokens: int, rows: int, context: int) -> None:
        sizes, k = step_floats(config, tokens), config.num_experts_per_tok
        self.tokens = tokens
        self.x = self._floats(sizes["x"], tokens)
        self.qkv = self._floats(sizes["qkv"], tokens)
        self.attended = self._floats(sizes["attended"], tokens)
        self.logits = self._floats(sizes["router logits"], tokens)
        self.weights = np.zeros((tokens, k), np.float32)
        self.ids = np.zeros((tokens, k), np.int32)
        self.guess_logits = np.zeros((rows, config.num_local_experts), np.float32)
        self.guess_weights = np.zeros((rows, k), np.float32)
        self.guess = np.zeros((rows, k), np.int32)
        self.h = self._floats(sizes["h"], tokens * k)
        self.out = self._floats(sizes["visits"], tokens * k)
        self.cosines = np.zeros((tokens, config.head_dim // 2), np.float32)
        self.sines = np.zeros((tokens, config.head_dim // 2), np.float32)
        self.partials = np.zeros(rows * partial_floats(config, context), np.float32)
        self.row = np.repeat(np.arange(tokens, dtype=np.int32), k)
        self.place = np.arange(tokens * k, dtype=np.int32)
        self._frequencies = 1 / periods(config)

    def turn(self, positions: Array) -> None:
        """Compute the angles of RoPE for tokens at these positions, in float64."""
        angles = np.multiply.outer(positions.astype(np.float64), self._frequencies)
        count = len(positions)
        np.cos(angles, out=self.cosines[:count], casting="same_kind")
        np.sin(angles, out=self.sines[:count], casting="same_kind")

    def _floats(self, size: int, rows: int) -> Array:
        return allocate((rows, size // rows), np.float32)


class Spans:
    """What each sequence of a step attends to in each layer, as `library.Span` has it.

    each int64 [layers, sequences, 4]: tokens, seen, window, address of the pages' addresses.
    writes int64 [layers, sequences]: the place where the sequence's tokens are written.
    """

    def __init__(self, layers: int, sequences: int) -> None:
        self.each = np.zeros((layers, sequences, 4), np.int64)
        self.writes = np.zeros((layers, sequences), np.int64)

    @property
    def sequences(self) -> int:
        return int(self.each.shape[1])


class Step(NamedTuple):
    """What a step's operations are made for: so many tokens, where they are, what they attend
    to."""

    device: Device
    buffers: Buffers
    spans: Spans
    tokens: int

    def call(self, kernel: Kernel, arguments: ctypes.Structure) -> Call:
        """An operation with its arguments."""
        return partial(kernel, self.device.handle, ctypes.byref(arguments))


def run(calls: Iterable[Call]) -> None:
    for call in calls:
        call()
