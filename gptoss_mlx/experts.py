"""Where the experts are: one bank of slots per layer.

A bank is four preallocated arrays; slot s of each holds one expert's matrices exactly as the file
has them. Here every expert is resident: there are as many slots as experts, and expert e lies in
slot e. Biases are small and kept by expert id.
"""

from __future__ import annotations

import mlx.core as mx

from gptoss_mlx.config import ModelConfig
from gptoss_mlx.kernels.moe_down import moe_down
from gptoss_mlx.kernels.moe_gate_up import moe_gate_up
from gptoss_mlx.weights import Loader

GROUPED = 64  # chosen experts (tokens * k) from which on they are grouped by slot


class ExpertBank:
    """The experts of one layer.

    gate_up  blocks [slots, 2 * intermediate, hidden / 8] u32, scales [.., hidden / 32] u8
    down     blocks [slots, hidden, intermediate / 8] u32, scales [.., intermediate / 32] u8
    """

    def __init__(self, config: ModelConfig, loader: Loader, layer: int) -> None:
        prefix = f"model.layers.{layer}.mlp.experts"
        experts, hidden = config.num_local_experts, config.hidden_size
        intermediate = config.intermediate_size
        self.limit = config.swiglu_limit
        self.gate_up_blocks = _blocks(
            loader, f"{prefix}.gate_up_proj_blocks", (experts, 2 * intermediate, hidden // 8)
        )
        self.gate_up_scales = loader.raw(f"{prefix}.gate_up_proj_scales", dtype=mx.uint8)
        self.gate_up_bias = loader.dense(f"{prefix}.gate_up_proj_bias")
        self.down_blocks = _blocks(
            loader, f"{prefix}.down_proj_blocks", (experts, hidden, intermediate // 8)
        )
        self.down_scales = loader.raw(f"{prefix}.down_proj_scales", dtype=mx.uint8)
        self.down_bias = loader.dense(f"{prefix}.down_proj_bias")

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """x [tokens, hidden], experts and weights [tokens, k] -> [tokens, hidden]"""
        slots = self.slots(experts)
        if slots.size < GROUPED:
            return self._run(x, slots, experts, weights)
        # Grouped by slot, every expert's weights are read once and meet all their tokens.
        tokens, k = experts.shape
        order = mx.argsort(slots.reshape(-1))
        slots, experts, weights = (a.reshape(-1, 1)[order] for a in (slots, experts, weights))
        y = self._run(x[order // k], slots, experts, weights, grouped=True)
        return y[mx.argsort(order)].reshape(tokens, k, -1).sum(axis=1)

    def _run(
        self,
        x: mx.array,
        slots: mx.array,
        experts: mx.array,
        weights: mx.array,
        grouped: bool = False,
    ) -> mx.array:
        h = moe_gate_up(
            x,
            self.gate_up_blocks,
            self.gate_up_scales,
            self.gate_up_bias,
            slots,
            experts,
            self.limit,
            grouped,
        )
        return moe_down(
            h,
            self.down_blocks,
            self.down_scales,
            self.down_bias,
            slots,
            experts,
            weights,
            grouped,
        )

    def slots(self, experts: mx.array) -> mx.array:
        """The slots the experts lie in."""
        return experts


def _blocks(loader: Loader, name: str, shape: tuple[int, ...]) -> mx.array:
    # [experts, rows, groups, 16] bytes are, byte for byte, [experts, rows, inputs / 8] words.
    return loader.raw(name, dtype=mx.uint32).reshape(shape)
