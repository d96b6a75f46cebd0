"""The experts' weights in memory: one bank of slots per layer.

A bank is four preallocated arrays; slot s of each holds one expert's matrices exactly as the file
has them. With as many slots as experts, expert e always lies in slot e; with fewer, streaming.py
decides which lies where. Biases are small: all are held, by expert id.
"""

from __future__ import annotations

import mlx.core as mx

from gptoss_mlx.backends.mlx.weights import Loader
from gptoss_mlx.spec.config import ModelConfig


class ExpertBank:
    """The experts of one layer, or the first `slots` of them.

    gate_up  blocks [slots, 2 * intermediate, hidden / 8] u32, scales [.., hidden / 32] u8
    down     blocks [slots, hidden, intermediate / 8] u32, scales [.., intermediate / 32] u8
    """

    def __init__(
        self, config: ModelConfig, loader: Loader, layer: int, slots: int | None = None
    ) -> None:
        self.kernels = loader.kernels
        self._prefix = prefix = f"model.layers.{layer}.mlp.experts"
        self.experts, hidden = config.num_local_experts, config.hidden_size
        self.size = slots or self.experts
        intermediate = config.intermediate_size
        self.limit = config.swiglu_limit
        gate_up, down = (2 * intermediate, hidden // 8), (hidden, intermediate // 8)
        self.gate_up_blocks = self._blocks(loader, f"{prefix}.gate_up_proj_blocks", gate_up)
        self.gate_up_scales = self._scales(loader, f"{prefix}.gate_up_proj_scales")
        self.gate_up_bias = loader.dense(f"{prefix}.gate_up_proj_bias")
        self.down_blocks = self._blocks(loader, f"{prefix}.down_proj_blocks", down)
        self.down_scales = self._scales(loader, f"{prefix}.down_proj_scales")
        self.down_bias = loader.dense(f"{prefix}.down_proj_bias")

    def __call__(
        self,
        x: mx.array,
        experts: mx.array,
        weights: mx.array,
        guess: mx.array | None = None,
        *,
        residual: mx.array | None = None,
    ) -> mx.array:
        """x and residual [tokens, hidden], experts and weights [tokens, k] -> [tokens, hidden]

        guess: used only where experts are streamed.
        """
        slots = self.slots(experts)
        if x.shape[0] == 1:
            h = self.gate_up(x, slots, experts)
            return self.down(h, slots, experts, weights, residual=residual)
        # Grouped by slot, every expert's weights are read once for all its tokens.
        tokens, k = experts.shape
        order = mx.argsort(slots.reshape(-1))
        slots, experts, weights = (a.reshape(-1, 1)[order] for a in (slots, experts, weights))
        h = self.gate_up(x[order // k], slots, experts, grouped=True)
        y = self.down(h, slots, experts, weights, grouped=True)
        y = y[mx.argsort(order)].reshape(tokens, k, -1).sum(axis=1)
        return y if residual is None else residual + y

    def gate_up(
        self, x: mx.array, slots: mx.array, experts: mx.array, grouped: bool = False
    ) -> mx.array:
        """x [tokens, hidden], slots and experts [tokens, k] -> [tokens, k, intermediate]

        grouped: slots ascend.
        """
        return self.kernels.moe_gate_up(
            x,
            self.gate_up_blocks,
            self.gate_up_scales,
            self.gate_up_bias,
            slots,
            experts,
            self.limit,
            grouped,
        )

    def down(
        self,
        h: mx.array,
        slots: mx.array,
        experts: mx.array,
        weights: mx.array,
        grouped: bool = False,
        residual: mx.array | None = None,
    ) -> mx.array:
        """h as `gate_up` gives it, the rest [tokens, k], residual and result [tokens, hidden]"""
        return self.kernels.moe_down(
            h,
            self.down_blocks,
            self.down_scales,
            self.down_bias,
            slots,
            experts,
            weights,
            grouped,
            residual,
        )

    def slots(self, experts: mx.array) -> mx.array:
        """The slots the experts lie in."""
        return experts

    @property
    def matrices(self) -> dict[str, mx.array]:
        """The bank's arrays, [slots, ..] each, by the names of the tensors they hold."""
        return {
            f"{self._prefix}.gate_up_proj_blocks": self.gate_up_blocks,
            f"{self._prefix}.gate_up_proj_scales": self.gate_up_scales,
            f"{self._prefix}.down_proj_blocks": self.down_blocks,
            f"{self._prefix}.down_proj_scales": self.down_scales,
        }

    def _blocks(self, loader: Loader, name: str, shape: tuple[int, int]) -> mx.array:
        # [slots, rows, groups, 16] bytes are, byte for byte, [slots, rows, inputs / 8] words.
        return loader.raw(name, dtype=mx.uint32, rows=self.size).reshape(self.size, *shape)

    def _scales(self, loader: Loader, name: str) -> mx.array:
        return loader.raw(name, dtype=mx.uint8, rows=self.size)
