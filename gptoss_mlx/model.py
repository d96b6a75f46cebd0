"""gpt-oss in MLX: embedding, blocks of attention and experts, logits.

The shapes are those of one sequence: x is [tokens, hidden]. What the sequence remembers is in the
`State` given to each call, so a model serves any number of sequences, one call at a time.
Formulas: OpenAI, gpt-oss/torch/model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.buffers import least_slots
from gptoss_mlx.cache import Arena, LayerCache, QuantizedArena, Ring, State, kv_group
from gptoss_mlx.checkpoint import Checkpoint, Progress
from gptoss_mlx.config import ModelConfig
from gptoss_mlx.embedding import Embedding, FileEmbedding, ResidentEmbedding
from gptoss_mlx.errors import ConfigError
from gptoss_mlx.experts import ExpertBank
from gptoss_mlx.heap import return_freed
from gptoss_mlx.kernels.attention_quantized import attention_quantized
from gptoss_mlx.kernels.choice import Kernels, choose_kernels
from gptoss_mlx.kernels.decode_qkv import Heads, Page
from gptoss_mlx.kernels.matrix import Norm
from gptoss_mlx.rope import magnitude, periods
from gptoss_mlx.streaming import StreamedExperts, Streaming
from gptoss_mlx.weights import Loader

CHUNK = 512  # tokens prefilled at a time, unless a plan says otherwise
SCORED = 64  # tokens whose logits are on the device at a time
ROWS = 1  # sequences at a time that a plan has memory for
CACHE_LIMIT = 256 << 20  # bytes of freed buffers MLX may keep


class Attention:
    """Norm, grouped-query attention with one learned sink logit a head, residual."""

    def __init__(self, config: ModelConfig, loader: Loader, layer: int, periods: mx.array) -> None:
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"
        self.kernels, self.periods = loader.kernels, periods
        self.heads = Heads(config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.norm = Norm(loader.dense(f"{prefix}.input_layernorm.weight"), config.rms_norm_eps)
        parts = [f"{attention}.{name}_proj" for name in "qkv"]
        joined = [parts] if loader.alike(*parts) else [[part] for part in parts]
        self.qkv = [(loader.matrix(*modules), loader.bias(*modules)) for modules in joined]
        self.o = loader.linear(f"{attention}.o_proj")
        self.sinks = loader.dense(f"{attention}.sinks")
        self.nothing = mx.array([], loader.dtype).reshape(
            2, self.heads.kv_heads, 0, self.heads.head_dim
        )
        # YaRN scales queries and keys alike; their product may as well be scaled once.
        self.scale = magnitude(config) ** 2 * config.head_dim**-0.5

    def __call__(
        self, x: mx.array, cache: LayerCache, offset: int, mask: mx.array | str | None
    ) -> mx.array:
        if x.shape[0] == 1 and self.kernels.pages and not isinstance(cache, QuantizedArena):
            y = self._one(x, cache, offset)
        else:
            y = self._chunk(x, cache, offset, mask)
        return self.o(y, residual=x)

    def _one(self, x: mx.array, cache: Arena | Ring, offset: int) -> mx.array:
        """A token whose keys and values are written where they are kept: [1, heads * head_dim]."""
        arena, held, page, slot, seen = cache.parts(self.nothing, offset)
        q, page = self._qkv(x, offset, Page(page, slot))
        cache.put(page)
        return self.kernels.decode_attention(q, arena, held, page, seen, self.sinks, self.scale)

    def _chunk(
        self, x: mx.array, cache: LayerCache, offset: int, mask: mx.array | str | None
    ) -> mx.array:
        """[tokens, heads * head_dim]"""
        q, kv = self._qkv(x, offset)
        if isinstance(cache, QuantizedArena):
            seen = cache.extend(kv, offset)
            keys, values = seen.half(0), seen.half(1)
            y = attention_quantized(q[None], keys, values, scale=self.scale, sinks=self.sinks)
        else:
            k, v = mx.split(cache.extend(kv, offset), 2)
            y = mx.fast.scaled_dot_product_attention(
                q[None], k, v, scale=self.scale, mask=mask, sinks=self.sinks
            )
        return y.swapaxes(1, 2).reshape(x.shape[0], -1)

    def _qkv(self, x: mx.array, offset: int, page: Page | None = None) -> tuple[mx.array, mx.array]:
        return self.kernels.decode_qkv(
            x, self.qkv, self.norm, self.heads, self.periods, mx.array(offset), page
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

    def __call__(self, x: mx.array, guess: mx.array | None = None) -> mx.array:
        logits, h = self.route(x)
        experts, weights = self.kernels.router_topk(logits, self.k)
        return self.experts(h, experts, weights, residual=x, guess=guess)

    def route(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """[tokens, hidden] -> logits float32 [tokens, experts], norm(x) [tokens, hidden]"""
        return self.kernels.decode_router(x, self.router, self.router_bias, self.norm)


class Block:
    """Attention, then experts.

    following: the next block, where experts are streamed and its choice is guessed ahead.
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

    def feed_forward(self, x: mx.array) -> mx.array:
        """[tokens, hidden] -> [tokens, hidden]"""
        experts, guess = self.moe.experts, None
        if self.following is not None and x.shape[0] * self.moe.k <= experts.size:
            guess = self.following.guess(x)
        return self.moe(x, guess)

    def foresee(self, following: Block) -> None:
        """From now on guess what the next block will choose, where that is of use."""
        ours, theirs = self.moe.experts, following.moe.experts
        if isinstance(ours, StreamedExperts) and isinstance(theirs, StreamedExperts):
            self.following, ours.following = following, theirs

    def guess(self, x: mx.array) -> mx.array:
        """The experts this block's router would choose from the residual stream a block earlier.

        [tokens, hidden] -> [tokens, k], the surest first.
        """
        logits, _ = self.moe.route(x)
        return mx.argsort(-logits, axis=-1)[:, : self.moe.k]


class Transformer:
    """The whole model on MLX's default device.

    streaming: None where every expert is resident.
    kv_bits: what full-attention layers of a new state keep a value in; None keeps it as computed.
    """

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        embedding: Embedding,
        streaming: Streaming | None = None,
        kv_bits: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self.config, self.chunk, self.rows, self.streaming = config, chunk, ROWS, streaming
        self.kernels, self.kv_bits = loader.kernels, kv_bits
        self.sliding = tuple(config.is_sliding(i) for i in range(config.num_hidden_layers))
        turns = mx.array(periods(config).astype(np.float32))
        self.embedding = embedding
        self.blocks = [
            Block(config, loader, layer, turns, streaming)
            for layer in range(config.num_hidden_layers)
        ]
        for block, following in pairwise(self.blocks):
            block.foresee(following)
        self.norm = Norm(loader.dense("model.norm.weight"), config.rms_norm_eps)
        self.lm_head = loader.linear("lm_head", bias=False)

    def new_state(self) -> State:
        """An empty sequence."""
        return State(self.sliding, self.config.sliding_window, self.kv_bits)

    def hidden(
        self, ids: Sequence[int] | mx.array, state: State, *, answered: bool = True
    ) -> mx.array:
        """Append tokens to the sequence. ids: [tokens] -> the last block's [tokens, hidden].

        answered: False leaves out the last block's experts, which the sequence does not remember.
        """
        x = self.embedding(ids)
        masks = _masks(x.shape[0], state)
        for block, cache, sliding in zip(self.blocks, state.layers, self.sliding, strict=True):
            x = block.attend(x, cache, state.offset, masks[sliding])
            if x.shape[0] > 1:
                # A new ring nobody waits for would hold its chunk's qkv until the last layer.
                mx.async_eval(*cache.arrays())  # type: ignore[no-untyped-call]
            if answered or block is not self.blocks[-1]:
                x = block.feed_forward(x)
        state.offset += x.shape[0]
        return x

    def logits(self, hidden: mx.array) -> mx.array:
        """[tokens, hidden] -> [tokens, vocabulary]"""
        return self.lm_head(hidden, norm=self.norm)

    def prefill(self, ids: Sequence[int], state: State) -> None:
        """Append a chunk and wait until it is in; nothing is predicted from it."""
        self.hidden(ids, state, answered=False)
        mx.eval(state.arrays())

    def evaluate(self, ids: Sequence[int], state: State) -> NDArray[np.float32]:
        """Append a chunk -> the logits after each of its tokens, float32 [tokens, vocabulary]."""
        x = self.hidden(ids, state)
        out = np.empty((x.shape[0], self.config.vocab_size), np.float32)
        for i in range(0, len(out), SCORED):
            out[i : i + SCORED] = np.asarray(self.logits(x[i : i + SCORED]).astype(mx.float32))
        return out

    def stats(self) -> dict[str, float]:
        """Bytes MLX holds now, and held at most; what streaming did (`streaming.Counts`)."""
        return {
            "active_bytes": mx.get_active_memory(),
            "peak_bytes": mx.get_peak_memory(),
            "cache_bytes": mx.get_cache_memory(),
            **({} if self.streaming is None else self.streaming.stats()),
        }

    def decode(self, token: Sequence[int] | mx.array, state: State) -> mx.array:
        """Append one token, given as its id or as the [1] array it will be in -> [vocabulary]."""
        return self.logits(self.hidden(token, state)).squeeze(0)

    def decode_many(
        self, tokens: Sequence[Sequence[int] | mx.array], states: Sequence[State]
    ) -> list[mx.array]:
        """Append one token to each of several sequences, in turn."""
        return [self.decode(token, state) for token, state in zip(tokens, states, strict=True)]


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
    embedding: str = "file",
    slots: int | None = None,
    kv_bits: int | None = None,
    chunk: int = CHUNK,
    cache_limit: int = CACHE_LIMIT,
    wired: int = 0,
    kernels: Kernels | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """Load a checkpoint onto MLX's default device.

    dtype: "bfloat16" or "float32"; by default bfloat16 on a GPU and float32 on a CPU, where MLX
    multiplies quantized bfloat16 slowly and coarsely.
    slots: experts of a layer held at a time, all by default; the others are read when they are
    chosen. At least one token's.
    kv_bits: 8 keeps keys and values of full-attention layers in 8 bits; None as computed.
    chunk: tokens prefilled at a time. cache_limit: bytes of freed buffers that MLX may keep.
    wired: bytes that a GPU's memory is kept resident for; of no meaning on a CPU.
    kernels: by default what `choose_kernels` finds for the device.
    Raises CheckpointError if a file cannot be read, is changed meanwhile, or holds an invalid scale
    or a float that is not finite, and ConfigError if kv_bits is given and head_dim is not a
    multiple of 32; KernelError as `choose_kernels`.
    """
    if kv_bits is not None:
        _check_kv_group(checkpoint)
    return_freed()
    mx.reset_peak_memory()
    mx.set_cache_limit(cache_limit)
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    if on_gpu:
        mx.set_wired_limit(min(wired, int(mx.device_info()["max_recommended_working_set_size"])))
    compute: mx.Dtype = getattr(mx, dtype or ("bfloat16" if on_gpu else "float32"))
    reader = checkpoint.reader()
    checkpoint.check_scales(reader=reader)
    config = checkpoint.config
    slots = slots or config.num_local_experts
    if not least_slots(config) <= slots <= config.num_local_experts:
        raise ValueError(f"{slots} slots are not within one token's experts and all of them")
    streaming = None
    if slots < config.num_local_experts:
        streaming = Streaming(checkpoint.tensors, reader, slots)
    total = _bytes_to_read(checkpoint, embedding, slots)
    kernels = kernels or choose_kernels(compute)
    with Loader(checkpoint, compute, total, progress, kernels, reader) as loader:
        table: Embedding
        if embedding == "resident":
            table = ResidentEmbedding(checkpoint, loader)
        else:
            table = FileEmbedding(checkpoint, loader, reader)
        model = Transformer(config, loader, table, streaming, kv_bits, chunk)
        loader.finish()
    return model


def _check_kv_group(checkpoint: Checkpoint) -> None:
    try:
        kv_group(checkpoint.config.head_dim)
    except ValueError as error:
        raise ConfigError(f"{checkpoint.folder / 'config.json'}: {error}") from error


def _bytes_to_read(checkpoint: Checkpoint, embedding: str, slots: int) -> int:
    return sum(
        (tensor.rows(0, slots) if name.endswith(("_blocks", "_scales")) else tensor).nbytes
        for name, tensor in checkpoint.tensors.items()
        if embedding == "resident" or not name.startswith("model.embed_tokens.")
    )
