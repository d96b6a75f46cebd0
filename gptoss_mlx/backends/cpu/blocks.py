"""The blocks of the model: attention, then a mixture of experts, each with norm and residual.

A block's operations are kernels with their arguments, made once for a number of tokens; a step
calls them in order. Formulas: OpenAI, gpt-oss/torch/model.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

from numpy.typing import NDArray

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.cpu.cache import Pages
from gptoss_mlx.backends.cpu.experts import ExpertBank
from gptoss_mlx.backends.cpu.linear import Projection
from gptoss_mlx.backends.cpu.step import Buffers, Spans
from gptoss_mlx.backends.cpu.streaming import StreamedExperts, Streaming
from gptoss_mlx.backends.cpu.weights import Loader
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.rope import magnitude

Array: TypeAlias = NDArray[Any]
Call: TypeAlias = Callable[[], object]
"""An operation with its arguments."""


def prepared(kernel: Callable[..., object], device: library.Device, arguments: Any) -> Call:
    return partial(kernel, device.handle, ctypes.byref(arguments))


def run(calls: Iterable[Call]) -> None:
    for call in calls:
        call()


class Attention:
    """Norm, grouped-query attention with one learned sink logit a head, residual."""

    def __init__(self, config: ModelConfig, loader: Loader, layer: int) -> None:
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"
        norm = loader.floats(f"{prefix}.input_layernorm.weight")
        names = [f"{attention}.{name}_proj" for name in "qkv"]
        self.qkv = Projection(loader, names, norm, config.rms_norm_eps)
        self.o = Projection(loader, [f"{attention}.o_proj"])
        self.sinks = loader.floats(f"{attention}.sinks")
        self.heads = config.num_attention_heads
        # YaRN scales queries and keys by the same factor; here their product is scaled once.
        self.scale = magnitude(config) ** 2 * config.head_dim**-0.5

    def keep(
        self,
        device: library.Device,
        buffers: Buffers,
        spans: Spans,
        layer: int,
        pages: Pages,
        n: int,
    ) -> list[Call]:
        """Queries of n tokens, and their keys and values written into the pages."""
        each, writes = spans.at(layer)
        address = library.address
        store = library.StoreCall(
            pages.shape(self.heads),
            spans.each.shape[1],
            each,
            writes,
            *map(address, (buffers.qkv, buffers.cosines, buffers.sines)),
        )
        qkv = self.qkv.call(buffers.x, buffers.qkv, n)
        return [prepared(device.linear, device, qkv), prepared(device.store, device, store)]

    def attend(
        self,
        device: library.Device,
        buffers: Buffers,
        spans: Spans,
        layer: int,
        pages: Pages,
        n: int,
    ) -> list[Call]:
        """What the queries attend to, projected and added to the residual stream."""
        address = library.address
        attention = library.AttentionCall(
            pages.shape(self.heads),
            spans.each.shape[1],
            spans.at(layer)[0],
            *map(address, (buffers.qkv, self.sinks)),
            self.scale,
            *map(address, (buffers.partials, buffers.attended)),
        )
        o = self.o.call(buffers.attended, buffers.x, n, residual=buffers.x)
        return [prepared(device.attention, device, attention), prepared(device.linear, device, o)]


class MoE:
    """Norm, a router and its experts, residual."""

    def __init__(
        self, config: ModelConfig, loader: Loader, layer: int, streaming: Streaming | None
    ) -> None:
        prefix = f"model.layers.{layer}"
        norm = loader.floats(f"{prefix}.post_attention_layernorm.weight")
        self.router = Projection(loader, [f"{prefix}.mlp.router"], norm, config.rms_norm_eps)
        self.k, self.hidden = config.num_experts_per_tok, config.hidden_size
        slots = None if streaming is None else streaming.slots
        self.bank = ExpertBank(config, loader, layer, norm, slots)
        self.streamed = None if streaming is None else StreamedExperts(self.bank, streaming)

    def calls(self, device: library.Device, buffers: Buffers, n: int) -> list[Call]:
        """The experts of n tokens, added to the residual stream."""
        route = self.route(device, buffers, n)
        total = library.SumCall(
            n,
            self.k,
            self.hidden,
            *map(library.address, (buffers.out, buffers.x, buffers.x)),
        )
        add = prepared(device.sum, device, total)
        if self.streamed is not None:
            return [*route, partial(self.streamed.visit, device, buffers, n), add]
        visits = self.bank.visits(buffers, n, n * self.k, buffers.ids)
        gate_up = prepared(device.moe_gate_up, device, visits)
        return [*route, gate_up, prepared(device.moe_down, device, visits), add]

    def route(self, device: library.Device, buffers: Buffers, n: int) -> list[Call]:
        """The experts of n tokens, and their weights."""
        address = library.address
        logits = self.router.call(buffers.x, buffers.logits, n)
        chosen = library.RouterCall(
            n,
            self.bank.experts,
            self.k,
            *map(address, (buffers.logits, buffers.ids, buffers.weights)),
        )
        return [
            prepared(device.linear, device, logits),
            prepared(device.router_topk, device, chosen),
        ]


class Block:
    """Attention, then experts."""

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        layer: int,
        streaming: Streaming | None = None,
    ) -> None:
        self.attention = Attention(config, loader, layer)
        self.moe = MoE(config, loader, layer, streaming)
