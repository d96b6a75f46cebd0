"""The experts of a layer, in a bank of slots on the device.

With as many slots as experts, expert e always lies in slot e; with fewer, streaming.py decides
which expert lies in which slot. Biases are small: all are on the device, indexed by expert id.
"""

from __future__ import annotations

import torch

from gptoss_mlx.backends.torch import mxfp4
from gptoss_mlx.backends.torch.choice import Kernels, is_reference
from gptoss_mlx.backends.torch.operands import Bank, Groups
from gptoss_mlx.backends.torch.weights import Loader
from gptoss_mlx.spec.config import ModelConfig

PACKED = 2  # experts rearranged at a time


class Experts:
    """The experts of one layer, or the first `slots` of them."""

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        kernels: Kernels,
        layer: int,
        slots: int | None = None,
    ) -> None:
        self.kernels, self.limit = kernels, config.swiglu_limit
        self.prefix = f"model.layers.{layer}.mlp.experts"
        self.experts, self.k = config.num_local_experts, config.num_experts_per_tok
        self.size = slots or self.experts
        self.files = [
            f"{self.prefix}.{name}_proj_{part}"
            for name in ("gate_up", "down")
            for part in ("blocks", "scales")
        ]
        self._loaded = [
            loader.raw(name, rows=self.size).reshape(self.size, rows, -1)
            for name, rows in zip(self.files, self._rows(config), strict=True)
        ]
        self._biases = [loader.dense(f"{self.prefix}.{n}_proj_bias") for n in ("gate_up", "down")]

    def pack(self) -> None:
        """Rearrange the loaded weights for the kernels; to be called before anything is computed.

        Without kernels the file's layout is kept: it is quicker to load, and to dequantize.
        """
        packed = on_kernels(self.kernels)
        gate_up, gate_up_scales, down, down_scales = self._loaded
        if packed:
            _pack(gate_up, gate_up_scales)
            _pack(down, down_scales)
        bias, down_bias = self._biases
        self.bank = Bank(gate_up, gate_up_scales, down, down_scales, bias, down_bias, packed)
        del self._loaded, self._biases

    def __call__(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The residual updates of the k experts chosen for each token, in the order of choice.

        x [tokens, hidden], the router's logits [tokens, experts] -> float32 [tokens, k, hidden]
        """
        tile = self.kernels.tile_for(len(x) * self.k, self.size)
        experts, weights, groups = self.kernels.route(logits, self.k, tile)
        return self.visit(x, groups, experts, weights)

    def visit(
        self, x: torch.Tensor, groups: Groups, experts: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The residual updates of experts chosen before [tokens, k], whose pairs `groups` holds."""
        h = self.kernels.moe_gate_up(x, self.bank, groups, experts, self.limit)
        return self.kernels.moe_down(h, self.bank, groups, experts, weights)

    @staticmethod
    def _rows(config: ModelConfig) -> tuple[int, int, int, int]:
        gate_up, down = 2 * config.intermediate_size, config.hidden_size
        return gate_up, gate_up, down, down


def on_kernels(kernels: Kernels) -> bool:
    """Whether experts are computed by kernels, at least in part."""
    return not all(is_reference(kernels, name) for name in ("moe_gate_up", "moe_down"))


def _pack(blocks: torch.Tensor, scales: torch.Tensor) -> None:
    """`mxfp4.pack` in place, some experts at a time: blocks and scales [slots, rows, ..]."""
    for i in range(0, len(blocks), PACKED):
        some = slice(i, i + PACKED)
        blocks[some], scales[some] = mxfp4.pack(blocks[some].clone(), scales[some].clone())
