"""The experts' weights in memory: one bank of slots per layer.

A bank is two projections of preallocated arrays; slot s of each holds one expert's matrix exactly
as the file has it. With as many slots as experts, expert e always lies in slot e; with fewer,
streaming.py decides which lies where. Biases are small: all are held, by expert id.
"""

from __future__ import annotations

import ctypes
from typing import Any, TypeAlias

from numpy.typing import NDArray

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.cpu.step import Buffers
from gptoss_mlx.backends.cpu.weights import Loader
from gptoss_mlx.spec.config import ModelConfig

Array: TypeAlias = NDArray[Any]

GROUP = 32  # values to a scale


class ExpertBank:
    """The experts of one layer, or the first `slots` of them.

    norm: RMSNorm's weight, applied to what gate_up takes.
    """

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        layer: int,
        norm: Array,
        slots: int | None = None,
    ) -> None:
        self.experts = config.num_local_experts
        self.size = slots or self.experts
        prefix = f"model.layers.{layer}.mlp.experts"
        names = [f"{prefix}.{p}_{part}" for p in ("gate_up_proj", "down_proj") for part in _PARTS]
        self.matrices = {
            name: loader.raw(name) if slots is None else loader.slots(name, slots) for name in names
        }
        gate_up, gate_up_scales, down, down_scales = self.matrices.values()
        self._biases = [loader.floats(f"{prefix}.{p}_bias") for p in ("gate_up_proj", "down_proj")]
        self._norm = norm
        self.struct = library.Bank(
            _matrix(gate_up, gate_up_scales),
            _matrix(down, down_scales),
            *map(library.address, (*self._biases, norm)),
            config.rms_norm_eps,
            config.swiglu_limit,
        )

    def visits(
        self,
        buffers: Buffers,
        rows: int,
        pairs: int,
        slot: Array,
        row: Array | None = None,
        place: Array | None = None,
        expert: Array | None = None,
        weight: Array | None = None,
    ) -> library.VisitsCall:
        """The arguments of a call for pairs of a token and an expert: by default all of `rows`
        tokens, in order. slot: where each pair's expert lies."""
        arrays = (
            buffers.row if row is None else row,
            slot,
            buffers.ids if expert is None else expert,
            buffers.place if place is None else place,
            buffers.weights if weight is None else weight,
            buffers.x,
            buffers.h,
            buffers.out,
        )
        addresses = map(library.address, arrays)
        return library.VisitsCall(ctypes.pointer(self.struct), rows, pairs, self.size, *addresses)


_PARTS = ("blocks", "scales")


def _matrix(blocks: Array, scales: Array) -> library.Matrix:
    """The matrix in slot 0. blocks uint8 [slots, outputs, groups, 16]"""
    _, outputs, groups, _ = blocks.shape
    form = library.FORMATS["mxfp4"]
    weight, scale = library.address(blocks), library.address(scales)
    return library.Matrix(form, 4, GROUP, 0, outputs, groups * GROUP, weight, scale, None)
