"""gpt-oss in MLX: embedding, blocks of attention and experts, logits.

The shapes are those of one sequence: x is [tokens, hidden]. What the sequence remembers is in the
`State` given to each call, so a model serves any number of sequences, one call at a time.
Formulas: OpenAI, gpt-oss/torch/model.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.cache import LayerCache, State
from gptoss_mlx.checkpoint import Checkpoint, Progress
from gptoss_mlx.config import ModelConfig
from gptoss_mlx.embedding import Embedding, MappedEmbedding, ResidentEmbedding
from gptoss_mlx.experts import ExpertBank
from gptoss_mlx.heap import return_freed
from gptoss_mlx.kernels.router_topk import router_topk
from gptoss_mlx.rope import magnitude, periods
from gptoss_mlx.weights import Loader

CHUNK = 512  # tokens prefilled at a time
CACHE_LIMIT = 256 << 20  # bytes of freed buffers MLX may keep


class Attention:
    """Grouped-query attention with one learned sink logit a head."""

    def __init__(self, config: ModelConfig, loader: Loader, layer: int, freqs: mx.array) -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        projections = [f"{prefix}.{name}_proj" for name in "qkv"]
        joined = [projections] if loader.alike(*projections) else [[p] for p in projections]
        self.qkv = [loader.linear(*modules) for modules in joined]
        self.o = loader.linear(f"{prefix}.o_proj")
        self.sinks = loader.dense(f"{prefix}.sinks")
        self.freqs = freqs
        # YaRN scales queries and keys alike; their product may as well be scaled once.
        self.scale = magnitude(config) ** 2 * config.head_dim**-0.5

    def __call__(
        self, x: mx.array, cache: LayerCache, offset: int, mask: mx.array | str | None
    ) -> mx.array:
        tokens = x.shape[0]
        qkv = mx.concatenate([part(x) for part in self.qkv], axis=-1)
        qkv = qkv.reshape(1, tokens, -1, self.head_dim).swapaxes(1, 2)  # [1, heads, tokens, d]
        q, k, v = mx.split(qkv, [self.heads, self.heads + self.kv_heads], axis=1)
        k, v = cache.extend(self._rope(k, offset), v, offset)
        y = mx.fast.scaled_dot_product_attention(
            self._rope(q, offset), k, v, scale=self.scale, mask=mask, sinks=self.sinks
        )
        return self.o(y.swapaxes(1, 2).reshape(tokens, -1))

    def _rope(self, x: mx.array, offset: int) -> mx.array:
        return mx.fast.rope(
            x,
            self.head_dim,
            traditional=False,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self.freqs,
        )


class MoE:
    """A router and its experts."""

    def __init__(self, config: ModelConfig, loader: Loader, layer: int) -> None:
        self.k = config.num_experts_per_tok
        self.router = loader.linear(f"model.layers.{layer}.mlp.router")
        self.experts = ExpertBank(config, loader, layer)

    def __call__(self, x: mx.array) -> mx.array:
        experts, weights = router_topk(self.router(x), self.k)
        return self.experts(x, experts, weights)


class Block:
    """x + attention(norm(x)), then x + experts(norm(x))."""

    def __init__(self, config: ModelConfig, loader: Loader, layer: int, freqs: mx.array) -> None:
        prefix = f"model.layers.{layer}"
        self.eps = config.rms_norm_eps
        self.attention_norm = loader.dense(f"{prefix}.input_layernorm.weight")
        self.attention = Attention(config, loader, layer, freqs)
        self.moe_norm = loader.dense(f"{prefix}.post_attention_layernorm.weight")
        self.moe = MoE(config, loader, layer)

    def __call__(
        self, x: mx.array, cache: LayerCache, offset: int, mask: mx.array | str | None
    ) -> mx.array:
        h = mx.fast.rms_norm(x, self.attention_norm, self.eps)
        x = x + self.attention(h, cache, offset, mask)
        return x + self.moe(mx.fast.rms_norm(x, self.moe_norm, self.eps))


class Transformer:
    """The whole model on MLX's default device."""

    def __init__(self, config: ModelConfig, loader: Loader, embedding: Embedding) -> None:
        self.config, self.chunk = config, CHUNK
        self.sliding = tuple(config.is_sliding(i) for i in range(config.num_hidden_layers))
        freqs = mx.array(periods(config).astype(np.float32))
        self.embedding = embedding
        self.blocks = [
            Block(config, loader, layer, freqs) for layer in range(config.num_hidden_layers)
        ]
        self.norm = loader.dense("model.norm.weight")
        self.lm_head = loader.linear("lm_head", bias=False)

    def new_state(self) -> State:
        """An empty sequence."""
        return State(self.sliding, self.config.sliding_window)

    def hidden(self, ids: Sequence[int] | mx.array, state: State) -> mx.array:
        """Append tokens to the sequence. ids: [tokens] -> the last block's [tokens, hidden]."""
        x = self.embedding(ids)
        masks = _masks(x.shape[0], state)
        for block, cache, sliding in zip(self.blocks, state.layers, self.sliding, strict=True):
            x = block(x, cache, state.offset, masks[sliding])
            if x.shape[0] > 1:
                # A new ring nobody waits for would hold its chunk's qkv until the last layer.
                mx.async_eval(*cache.arrays())  # type: ignore[no-untyped-call]
        state.offset += x.shape[0]
        return x

    def logits(self, hidden: mx.array) -> mx.array:
        """[tokens, hidden] -> [tokens, vocabulary]"""
        return self.lm_head(mx.fast.rms_norm(hidden, self.norm, self.config.rms_norm_eps))

    def prefill(self, ids: Sequence[int], state: State) -> None:
        """Append a chunk and wait until it is in; nothing is predicted from it."""
        self.hidden(ids, state)
        mx.eval(state.arrays())

    def evaluate(self, ids: Sequence[int], state: State) -> NDArray[np.float32]:
        """Append a chunk -> the logits after each of its tokens, float32 [tokens, vocabulary]."""
        return np.array(self.logits(self.hidden(ids, state)).astype(mx.float32))

    def memory(self) -> dict[str, int]:
        """Bytes MLX holds now, and held at most."""
        return {
            "active_bytes": mx.get_active_memory(),
            "peak_bytes": mx.get_peak_memory(),
            "cache_bytes": mx.get_cache_memory(),
        }

    def decode(self, token: Sequence[int] | mx.array, state: State) -> mx.array:
        """Append one token, given as its id or as the [1] array it will be in -> [vocabulary]."""
        return self.logits(self.hidden(token, state))[0]


def _masks(tokens: int, state: State) -> tuple[mx.array | str | None, mx.array | str | None]:
    """What a chunk may not see in (full, sliding) layers; a single token sees all it is given."""
    if tokens == 1:
        return None, None
    earlier = min(state.offset, state.window - 1)
    if earlier + tokens <= state.window:
        return "causal", "causal"
    query = mx.arange(earlier, earlier + tokens)[:, None]
    key = mx.arange(earlier + tokens)[None, :]
    return "causal", (key <= query) & (key > query - state.window)


def open_model(
    checkpoint: Checkpoint,
    *,
    dtype: str | None = None,
    embedding: str = "mapped",
    progress: Progress | None = None,
) -> Transformer:
    """Load a checkpoint onto MLX's default device.

    dtype: "bfloat16" or "float32"; by default bfloat16 on a GPU and float32 on a CPU, where MLX
    multiplies quantized bfloat16 slowly and coarsely.
    Raises CheckpointError if a file cannot be read or holds an invalid scale.
    """
    return_freed()
    mx.set_cache_limit(CACHE_LIMIT)
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    compute: mx.Dtype = getattr(mx, dtype or ("bfloat16" if on_gpu else "float32"))
    checkpoint.check_scales()
    with Loader(checkpoint, compute, _bytes_to_read(checkpoint, embedding), progress) as loader:
        table = ResidentEmbedding if embedding == "resident" else MappedEmbedding
        model = Transformer(checkpoint.config, loader, table(checkpoint, loader))
        loader.finish()
    return model


def _bytes_to_read(checkpoint: Checkpoint, embedding: str) -> int:
    return sum(
        tensor.nbytes
        for name, tensor in checkpoint.tensors.items()
        if embedding == "resident" or not name.startswith("model.embed_tokens.")
    )
