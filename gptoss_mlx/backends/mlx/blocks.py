"""The blocks of the model: attention, then a mixture of experts, each with norm and residual.

x is [tokens, hidden]: a chunk of one sequence in prefill, one token of each of several sequences in
decoding. Formulas: OpenAI, gpt-oss/torch/model.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from gptoss_mlx.backends.mlx.cache import Arena, LayerCache, QuantizedArena, Ring
from gptoss_mlx.backends.mlx.experts import ExpertBank
from gptoss_mlx.backends.mlx.ops.attention_quantized import attention_quantized
from gptoss_mlx.backends.mlx.ops.decode_qkv import Heads
from gptoss_mlx.backends.mlx.ops.matrix import Norm
from gptoss_mlx.backends.mlx.ops.place import Place
from gptoss_mlx.backends.mlx.pages import Row, joined
from gptoss_mlx.backends.mlx.streaming import StreamedExperts, Streaming
from gptoss_mlx.backends.mlx.weights import Loader, evaluated
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.rope import magnitude


class Attention:
    """Norm, grouped-query attention with one learned sink logit a head, residual."""

    def __init__(self, config: ModelConfig, loader: Loader, layer: int, periods: mx.array) -> None:
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"
        self.kernels, self.periods = loader.kernels, periods
        self.heads = Heads(config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.norm = Norm(loader.dense(f"{prefix}.input_layernorm.weight"), config.rms_norm_eps)
        names = [f"{attention}.{name}_proj" for name in "qkv"]
        joined = [names] if loader.alike(*names) else [[name] for name in names]
        self.qkv = [(loader.matrix(*modules), loader.bias(*modules)) for modules in joined]
        self.o = loader.linear(f"{attention}.o_proj")
        self.sinks = loader.dense(f"{attention}.sinks")
        heads = self.heads
        self.nothing = evaluated(mx.zeros((2, heads.kv_heads, 0, heads.head_dim), loader.dtype))
        # YaRN scales queries and keys by the same factor; here their product is scaled once.
        self.scale = magnitude(config) ** 2 * config.head_dim**-0.5

    def prefill(
        self, x: mx.array, cache: LayerCache, place: Place, mask: mx.array | str | None
    ) -> mx.array:
        """A chunk of one sequence: [tokens, hidden] -> [tokens, hidden]"""
        q, kv = self._qkv(x, place)
        y = self._attention(q, kv, cache, place.offsets[0], mask)
        return self.o(y, residual=x)

    def decode(self, x: mx.array, caches: Sequence[LayerCache], place: Place) -> mx.array:
        """One token of each of several sequences: [sequences, hidden] -> [sequences, hidden]"""
        paged = [cache for cache in caches if isinstance(cache, Arena | Ring) and place.paged]
        y = self._paged(x, paged, place) if paged else self._extended(x, caches, place)
        return self.o(y, residual=x)

    def _paged(self, x: mx.array, caches: Sequence[Arena | Ring], place: Place) -> mx.array:
        """Attention of tokens that are written straight into pages."""
        pages = joined([cache.page(self.nothing) for cache in caches])
        arenas = [cache.arena(self.nothing) for cache in caches]
        q, pages = self._qkv(x, place, pages)
        for index, cache in enumerate(caches):
            cache.put(Row(pages, index))
        return self.kernels.decode_attention(q, arenas, pages, place, self.sinks, self.scale)

    def _extended(self, x: mx.array, caches: Sequence[LayerCache], place: Place) -> mx.array:
        """Attention of tokens that `extend` appends, each to its sequence."""
        q, kv = self._qkv(x, place)
        rows = [
            self._attention(q[:, i : i + 1], kv[:, :, i : i + 1], cache, offset, None)
            for i, (cache, offset) in enumerate(zip(caches, place.offsets, strict=True))
        ]
        return rows[0] if len(rows) == 1 else mx.concatenate(rows)

    def _attention(
        self,
        q: mx.array,
        kv: mx.array,
        cache: LayerCache,
        offset: int,
        mask: mx.array | str | None,
    ) -> mx.array:
        """Append tokens to a sequence, and attend to it: [tokens, heads * head_dim]

        q [heads, tokens, head_dim], kv [2, kv_heads, tokens, head_dim]
        """
        if isinstance(cache, QuantizedArena):
            seen = cache.extend(kv, offset)
            keys, values = seen.half(0), seen.half(1)
            y = attention_quantized(q[None], keys, values, scale=self.scale, sinks=self.sinks)
        else:
            k, v = mx.split(cache.extend(kv, offset), 2)
            y = mx.fast.scaled_dot_product_attention(
                q[None], k, v, scale=self.scale, mask=mask, sinks=self.sinks
            )
        return y.swapaxes(1, 2).reshape(q.shape[1], -1)

    def _qkv(
        self, x: mx.array, place: Place, pages: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        return self.kernels.decode_qkv(
            x, self.qkv, self.norm, self.heads, self.periods, place, pages
        )


class MoE:
    """Norm, a router and its experts, residual."""

    def __init__(
        self, config: ModelConfig, loader: Loader, layer: int, streaming: Streaming | None
    ) -> None:
        prefix = f"model.layers.{layer}"
        self.kernels, self.k = loader.kernels, config.num_experts_per_tok
        self.norm = Norm(
            loader.dense(f"{prefix}.post_attention_layernorm.weight"), config.rms_norm_eps
        )
        router = f"{prefix}.mlp.router"
        self.router, self.router_bias = loader.matrix(router), loader.bias(router)
        self.experts: ExpertBank | StreamedExperts
        if streaming is None:
            self.experts = ExpertBank(config, loader, layer)
        else:
            self.experts = StreamedExperts(
                ExpertBank(config, loader, layer, streaming.slots), streaming
            )

    def __call__(
        self, x: mx.array, guess: mx.array | None = None, *, decoding: bool = False
    ) -> mx.array:
        logits, h = self.route(x)
        experts, weights = self.kernels.router_topk(logits, self.k)
        return self.experts(h, experts, weights, residual=x, guess=guess, decoding=decoding)

    def route(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """[tokens, hidden] -> logits float32 [tokens, experts], norm(x) [tokens, hidden]"""
        return self.kernels.decode_router(x, self.router, self.router_bias, self.norm)


class Block:
    """Attention, then experts.

    following: the next block, if experts are streamed: its router's choice is guessed here.
    """

    following: Block | None = None

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        layer: int,
        periods: mx.array,
        streaming: Streaming | None = None,
    ) -> None:
        self.attend = Attention(config, loader, layer, periods)
        self.moe = MoE(config, loader, layer, streaming)

    def feed_forward(self, x: mx.array, *, decoding: bool = False) -> mx.array:
        """[tokens, hidden] -> [tokens, hidden]. decoding: tokens of as many sequences."""
        experts, guess = self.moe.experts, None
        if self.following is not None and x.shape[0] * self.moe.k <= experts.size:
            guess = self.following.guess(x)
        return self.moe(x, guess, decoding=decoding)

    def foresee(self, following: Block) -> None:
        """Guess the next block's experts from here on, if both blocks' experts are streamed."""
        ours, theirs = self.moe.experts, following.moe.experts
        if isinstance(ours, StreamedExperts) and isinstance(theirs, StreamedExperts):
            self.following, ours.following = following, theirs

    def guess(self, x: mx.array) -> mx.array:
        """The experts this block's router would choose from the residual stream a block earlier.

        [tokens, hidden] -> [tokens, k], the surest first.
        """
        logits, _ = self.moe.route(x)
        return mx.argsort(-logits, axis=-1)[:, : self.moe.k]
