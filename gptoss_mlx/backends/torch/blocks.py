"""The transformer blocks in PyTorch: attention, then a mixture of experts, each after a norm.

A chunk of one sequence and a step of several differ in attention only, so a block takes a `Chunk`
or a `Step` that knows where keys and values are. A block returns the residual x and, beside it,
residual updates that the next norm adds to x: sum and norm are one operation.
"""

from __future__ import annotations

import torch

from gptoss_mlx.backends.torch.choice import Kernels
from gptoss_mlx.backends.torch.experts import Experts
from gptoss_mlx.backends.torch.operands import Heads
from gptoss_mlx.backends.torch.places import Chunk, Layer, Places
from gptoss_mlx.backends.torch.streaming import StreamedExperts, Streaming
from gptoss_mlx.backends.torch.weights import Loader
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.rope import magnitude


class Attention:
    """Grouped-query attention with one learned sink logit per head."""

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        kernels: Kernels,
        layer: int,
        periods: torch.Tensor,
    ) -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.kernels = kernels
        parts = [f"{prefix}.{name}_proj" for name in "qkv"]
        self.qkv, self.qkv_bias = loader.matrix(*parts), loader.bias(*parts)
        self.o, self.o_bias = loader.matrix(f"{prefix}.o_proj"), loader.bias(f"{prefix}.o_proj")
        self.layer = Layer(
            layer,
            Heads(config.num_attention_heads, config.num_key_value_heads, config.head_dim),
            periods,
            loader.dense(f"{prefix}.sinks"),
            # YaRN scales queries and keys by one factor; here its square scales their product.
            magnitude(config) ** 2 * config.head_dim**-0.5,
            config.sliding_window if config.is_sliding(layer) else None,
        )

    def __call__(self, h: torch.Tensor, places: Places) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden]"""
        qkv = self.kernels.linear(h, self.qkv, self.qkv_bias)
        return self.kernels.linear(
            places.attend(qkv, self.layer, self.kernels), self.o, self.o_bias
        )

    def keep(self, h: torch.Tensor, chunk: Chunk) -> None:
        """Write the tokens' keys and values to the cache, without attending."""
        chunk.write(self.kernels.linear(h, self.qkv, self.qkv_bias), self.layer, self.kernels)


class MoE:
    """A router and its experts."""

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        kernels: Kernels,
        layer: int,
        streaming: Streaming | None,
    ) -> None:
        router = f"model.layers.{layer}.mlp.router"
        self.kernels = kernels
        self.router, self.router_bias = loader.matrix(router), loader.bias(router)
        self.experts: Experts | StreamedExperts
        if streaming is None:
            self.experts = Experts(config, loader, kernels, layer)
        else:
            self.experts = StreamedExperts(
                Experts(config, loader, kernels, layer, streaming.slots), streaming
            )

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        """h [tokens, hidden] -> the experts' residual updates, float32 [tokens, k, hidden]"""
        logits = self.kernels.linear(h, self.router, self.router_bias, torch.float32)
        return self.experts(h, logits)


class Norm:
    """Adds residual updates to the residual x and normalizes the sum: -> (sum, its RMSNorm)."""

    def __init__(self, config: ModelConfig, loader: Loader, kernels: Kernels, name: str) -> None:
        self.kernels, self.eps = kernels, config.rms_norm_eps
        self.weight = loader.dense(f"{name}.weight")

    def __call__(
        self, x: torch.Tensor, updates: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.kernels.add_norm(x, updates, self.weight, self.eps)


class Block:
    """Attention, then experts, each after a norm.

    Takes and returns the residual x and the residual updates that are still to be added to it.
    """

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        kernels: Kernels,
        layer: int,
        periods: torch.Tensor,
        streaming: Streaming | None,
    ) -> None:
        name = f"model.layers.{layer}"
        self.before = Norm(config, loader, kernels, f"{name}.input_layernorm")
        self.attention = Attention(config, loader, kernels, layer, periods)
        self.between = Norm(config, loader, kernels, f"{name}.post_attention_layernorm")
        self.moe = MoE(config, loader, kernels, layer, streaming)

    def __call__(
        self, x: torch.Tensor, updates: torch.Tensor | None, places: Places
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, h = self.before(x, updates)
        x, h = self.between(x, self.attention(h, places)[:, None])
        return x, self.moe(h)

    def keep(self, x: torch.Tensor, updates: torch.Tensor | None, chunk: Chunk) -> None:
        """Write the block's keys and values to the cache, and compute nothing else."""
        _, h = self.before(x, updates)
        self.attention.keep(h, chunk)
