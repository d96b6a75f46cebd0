"""The blocks of the model: attention, then a mixture of experts, each with norm and residual.

A block's operations are kernels with their arguments, made once for a number of tokens; a step
calls them in order. Formulas: OpenAI, gpt-oss/torch/model.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

from numpy.typing import NDArray

from gptoss_mlx.backends.bank import PrefetchStreaming
from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.cpu.cache import Pages
from gptoss_mlx.backends.cpu.experts import ExpertBank
from gptoss_mlx.backends.cpu.linear import Projection
from gptoss_mlx.backends.cpu.step import Call, Step
from gptoss_mlx.backends.cpu.streaming import StreamedExperts
from gptoss_mlx.backends.cpu.weights import Loader
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.rope import magnitude

Array: TypeAlias = NDArray[Any]


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

    def keep(self, step: Step, layer: int, pages: Pages) -> list[Call]:
        """Queries of the step's tokens, and their keys and values written into the pages."""
        buffers, spans, address = step.buffers, step.spans, library.address
        qkv = self.qkv.call(buffers.x, buffers.qkv, step.tokens)
        store = library.StoreCall(
            pages.shape(self.heads),
            spans.sequences,
            *map(address, (spans.each[layer], spans.writes[layer])),
            *map(address, (buffers.qkv, buffers.cosines, buffers.sines)),
        )
        return [step.call(step.device.linear, qkv), step.call(step.device.store, store)]

    def attend(self, step: Step, layer: int, pages: Pages) -> list[Call]:
        """What the queries attend to, projected and added to the residual stream."""
        buffers, spans, address = step.buffers, step.spans, library.address
        attention = library.AttentionCall(
            pages.shape(self.heads),
            spans.sequences,
            *map(address, (spans.each[layer], buffers.qkv, self.sinks)),
            self.scale,
            *map(address, (buffers.partials, buffers.attended)),
        )
        o = self.o.call(buffers.attended, buffers.x, step.tokens, residual=buffers.x)
        return [step.call(step.device.attention, attention), step.call(step.device.linear, o)]


class MoE:
    """Norm, a router and its experts, residual.

    following: the next layer's, if experts are streamed: its router's choice is guessed here.
    """

    following: MoE | None = None

    def __init__(
        self, config: ModelConfig, loader: Loader, layer: int, streaming: PrefetchStreaming | None
    ) -> None:
        prefix = f"model.layers.{layer}"
        norm = loader.floats(f"{prefix}.post_attention_layernorm.weight")
        self.router = Projection(loader, [f"{prefix}.mlp.router"], norm, config.rms_norm_eps)
        self.k, self.hidden = config.num_experts_per_tok, config.hidden_size
        slots = None if streaming is None else streaming.slots
        self.bank = ExpertBank(config, loader, layer, norm, slots)
        self.streamed = None if streaming is None else StreamedExperts(self.bank, streaming)

    def calls(self, step: Step) -> list[Call]:
        """The experts of the step's tokens, added to the residual stream."""
        buffers, device, n = step.buffers, step.device, step.tokens
        arrays = map(library.address, (buffers.out, buffers.x, buffers.x))
        add = step.call(device.sum, library.SumCall(n, self.k, self.hidden, *arrays))
        route = self._route(step, buffers.logits, buffers.ids, buffers.weights)
        if self.streamed is not None:
            return [*route, *self._stream(step, self.streamed), add]
        visits = self.bank.visits(buffers, n, n * self.k, buffers.ids)
        gate_up, down = step.call(device.moe_gate_up, visits), step.call(device.moe_down, visits)
        return [*route, gate_up, down, add]

    def foresee(self, following: MoE) -> None:
        """Guess the next layer's experts from here on, if both layers' experts are streamed."""
        if self.streamed is not None and following.streamed is not None:
            self.following, self.streamed.following = following, following.streamed

    def _stream(self, step: Step, streamed: StreamedExperts) -> list[Call]:
        """The visits to streamed experts. The next layer's router guesses from the residual stream
        a layer earlier, where a few tokens are decoded."""
        buffers, n = step.buffers, step.tokens
        visit = partial(streamed.visit, step.device, buffers, n)
        if self.following is None or n * self.k > streamed.size or n > len(buffers.guess):
            return [visit]
        logits, ids, weights = buffers.guess_logits, buffers.guess, buffers.guess_weights
        guess = self.following._route(step, logits, ids, weights)
        return [*guess, partial(visit, ids[:n])]

    def _route(self, step: Step, logits: Array, ids: Array, weights: Array) -> list[Call]:
        """The experts of the step's tokens, and their weights."""
        call = self.router.call(step.buffers.x, logits, step.tokens)
        arrays = map(library.address, (logits, ids, weights))
        chosen = library.RouterCall(step.tokens, self.bank.experts, self.k, *arrays)
        device = step.device
        return [step.call(device.linear, call), step.call(device.router_topk, chosen)]


class Block:
    """Attention, then experts."""

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        layer: int,
        streaming: PrefetchStreaming | None = None,
    ) -> None:
        self.attention = Attention(config, loader, layer)
        self.moe = MoE(config, loader, layer, streaming)
