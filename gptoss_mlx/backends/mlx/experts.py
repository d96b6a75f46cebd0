"""The experts' weights in memory: one bank of slots per layer.

A bank is two projections of preallocated arrays; slot s of each holds one expert's matrix exactly
as the file has it. With as many slots as experts, expert e always lies in slot e; with fewer,
streaming.py decides which lies where. Biases are small: all are held, by expert id.
"""

from __future__ import annotations

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection
from gptoss_mlx.backends.mlx.ops.routing import Routing
from gptoss_mlx.backends.mlx.weights import Loader, evaluated
from gptoss_mlx.spec.config import ModelConfig


class ExpertBank:
    """The experts of one layer, or the first `slots` of them.

    gate_up_proj: hidden to 2 * intermediate; down_proj: intermediate to hidden
    """

    def __init__(
        self, config: ModelConfig, loader: Loader, layer: int, slots: int | None = None
    ) -> None:
        self.kernels = loader.kernels
        self._prefix = f"model.layers.{layer}.mlp.experts"
        self.experts, hidden = config.num_local_experts, config.hidden_size
        self.size = slots or self.experts
        intermediate = config.intermediate_size
        self.limit = config.swiglu_limit
        self.gate_up_proj = self._projection(loader, "gate_up_proj", 2 * intermediate, hidden)
        self.down_proj = self._projection(loader, "down_proj", hidden, intermediate)

    def __call__(
        self,
        x: mx.array,
        experts: mx.array,
        weights: mx.array,
        guess: mx.array | None = None,
        *,
        residual: mx.array | None = None,
        decoding: bool = False,
    ) -> mx.array:
        """x and residual [tokens, hidden], experts and weights [tokens, k] -> [tokens, hidden]

        guess: used only where experts are streamed. decoding: tokens of as many sequences, each of
        which gets the result that it would get alone, bit for bit.
        """
        routing = Routing(experts, experts, weights)
        if decoding or x.shape[0] == 1:
            return self.down(self.gate_up(x, routing), routing, residual)
        # Grouped by slot, every expert's weights are read once for all its tokens.
        tokens, k = experts.shape
        order = mx.argsort(experts.reshape(-1))
        experts, weights = (a.reshape(-1, 1)[order] for a in (experts, weights))
        routing = Routing(experts, experts, weights, grouped=True)
        y = self.down(self.gate_up(x[order // k], routing), routing)
        y = y[mx.argsort(order)].reshape(tokens, k, -1).sum(axis=1)
        return y if residual is None else residual + y

    def gate_up(self, x: mx.array, routing: Routing) -> mx.array:
        """[tokens, hidden] -> [tokens, k, intermediate]"""
        return self.kernels.moe_gate_up(x, self.gate_up_proj, routing, self.limit)

    def down(self, h: mx.array, routing: Routing, residual: mx.array | None = None) -> mx.array:
        """h [tokens, k, intermediate], residual [tokens, hidden] -> [tokens, hidden]"""
        return self.kernels.moe_down(h, self.down_proj, routing, residual)

    @property
    def matrices(self) -> dict[str, mx.array]:
        """The bank's arrays, [slots, ..] each, by the names of the tensors they hold."""
        return {
            f"{self._prefix}.gate_up_proj_blocks": self.gate_up_proj.blocks,
            f"{self._prefix}.gate_up_proj_scales": self.gate_up_proj.scales,
            f"{self._prefix}.down_proj_blocks": self.down_proj.blocks,
            f"{self._prefix}.down_proj_scales": self.down_proj.scales,
        }

    def _projection(self, loader: Loader, name: str, outputs: int, inputs: int) -> Projection:
        name = f"{self._prefix}.{name}"
        # [slots, outputs, groups, 16] bytes are, byte for byte, [slots, outputs, inputs / 8] words.
        blocks = loader.raw(f"{name}_blocks", dtype=mx.uint32, rows=self.size)
        return Projection(
            evaluated(blocks.reshape(self.size, outputs, inputs // 8)),
            loader.raw(f"{name}_scales", dtype=mx.uint8, rows=self.size),
            loader.dense(f"{name}_bias"),
        )
