"""gpt-oss in MLX: embedding, blocks of attention and experts, logits.

x is [tokens, hidden]: a chunk of one sequence in prefill, one token of each of several sequences in
decoding. A sequence's KV cache is in the `State` given to each call, so a model serves any number
of sequences, one call at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from weakref import WeakSet

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.loading import bytes_to_read
from gptoss_mlx.backends.mlx import segments
from gptoss_mlx.backends.mlx.blocks import Block
from gptoss_mlx.backends.mlx.cache import State, kv_group
from gptoss_mlx.backends.mlx.embedding import Embedding, FileEmbedding, ResidentEmbedding, Rows
from gptoss_mlx.backends.mlx.ops.choice import Kernels, choose_kernels
from gptoss_mlx.backends.mlx.ops.matrix import Norm
from gptoss_mlx.backends.mlx.ops.metal import DECODED, mlx_version, require_mlx
from gptoss_mlx.backends.mlx.ops.place import anywhere, places
from gptoss_mlx.backends.mlx.rehearsal import rehearse
from gptoss_mlx.backends.mlx.sampler import Operations
from gptoss_mlx.backends.mlx.streaming import Streaming
from gptoss_mlx.backends.mlx.weights import Loader
from gptoss_mlx.backends.protocol import Choice, Draw, Layout
from gptoss_mlx.backends.sampler import RuledSampler
from gptoss_mlx.backends.state import Copied, check_rows
from gptoss_mlx.backends.streaming import slots_of
from gptoss_mlx.errors import ConfigError
from gptoss_mlx.models.checkpoint import Checkpoint, Progress
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.rope import periods
from gptoss_mlx.spec.sampling import Sampling
from gptoss_mlx.system.heap import return_freed

CHUNK = 512  # tokens prefilled at a time, unless a plan says otherwise
SCORED = 64  # tokens whose logits are on the device at a time
CACHE_LIMIT = 256 << 20  # bytes of freed buffers MLX may keep


class Transformer:
    """The whole model on MLX's default device.

    streaming: None where every expert is resident. rows: sequences decoded at a time.
    kv_bits: bits of a value in full-attention layers of a new state; None keeps the compute dtype.
    """

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        embedding: Embedding,
        streaming: Streaming | None = None,
        kv_bits: int | None = None,
        chunk: int = CHUNK,
        rows: int = 1,
    ) -> None:
        self.config, self.chunk, self.rows, self.streaming = config, chunk, rows, streaming
        self.kernels, self.kv_bits, self.dtype = loader.kernels, kv_bits, loader.dtype
        self.sliding = tuple(config.is_sliding(i) for i in range(config.num_hidden_layers))
        rope_periods = mx.array(periods(config).astype(np.float32))
        self.embedding = embedding
        self._operations = Operations(config.vocab_size)
        self._together: WeakSet[State] = WeakSet()  # in the last step
        self.blocks = [
            Block(config, loader, layer, rope_periods, streaming)
            for layer in range(config.num_hidden_layers)
        ]
        for block, following in pairwise(self.blocks):
            block.foresee(following)
        self.norm = Norm(loader.dense("model.norm.weight"), config.rms_norm_eps)
        self.lm_head = loader.linear("lm_head", bias=False)

    @property
    def rejected(self) -> Mapping[str, str]:
        """Metal kernels that are not used here, and why."""
        return self.kernels.rejected

    def new_state(self) -> State:
        """An empty sequence."""
        return State(self.sliding, self.config.sliding_window, self.kv_bits)

    def restore(self, parts: Sequence[Copied[mx.array]]) -> State:
        """A new sequence from segments, each of which begins where the one before ends."""
        state = self.new_state()
        state.restore(parts)
        return state

    def layout(self, tokens: int) -> Layout:
        """What a segment of so many tokens consists of."""
        return segments.layout(self.config, self.dtype, self.kv_bits, tokens)

    def to_host(self, segment: Copied[mx.array]) -> list[NDArray[np.uint8]]:
        return segments.to_host(segment)

    def from_host(
        self, start: int, end: int, arrays: Sequence[NDArray[np.uint8]]
    ) -> Copied[mx.array]:
        return segments.from_host(start, end, arrays, self.layout(end - start))

    def hidden(
        self, ids: Sequence[int] | mx.array, state: State, *, answered: bool = True
    ) -> mx.array:
        """Append a chunk to the sequence. ids: [tokens] -> the last block's [tokens, hidden].

        answered: False leaves out the last block's experts, which only logits depend on.
        """
        rows = self.embedding(ids)
        rows.read()
        x = rows.x
        masks, place = _masks(x.shape[0], state), anywhere(state.offset)
        for block, cache, sliding in zip(self.blocks, state.layers, self.sliding, strict=True):
            x = block.attend.prefill(x, cache, place, masks[sliding])
            # Evaluated here: left lazy, it would hold its chunk's qkv until the last layer.
            mx.async_eval(*cache.arrays())  # type: ignore[no-untyped-call]
            if answered or block is not self.blocks[-1]:
                x = block.feed_forward(x)
        state.offset += x.shape[0]
        return x

    def logits(self, hidden: mx.array) -> mx.array:
        """[tokens, hidden] -> float32 [tokens, vocabulary]"""
        return self.lm_head(hidden, norm=self.norm, dtype=mx.float32)

    def prefill(self, ids: Sequence[int], state: State) -> None:
        """Append a chunk and wait until it is in the KV cache; no logits are computed."""
        self.hidden(ids, state, answered=False)
        mx.eval(state.arrays())

    def evaluate(self, ids: Sequence[int], state: State) -> NDArray[np.float32]:
        """Append a chunk -> the logits after each of its tokens, float32 [tokens, vocabulary]."""
        x = self.hidden(ids, state)
        out = np.empty((x.shape[0], self.config.vocab_size), np.float32)
        for i in range(0, len(out), SCORED):
            out[i : i + SCORED] = np.asarray(self.logits(x[i : i + SCORED]))
        return out

    def stats(self) -> dict[str, float]:
        """Bytes that MLX holds, and its peak; the counts of streaming (`streaming.Counts`)."""
        return {
            "active_bytes": mx.get_active_memory(),
            "peak_bytes": mx.get_peak_memory(),
            "cache_bytes": mx.get_cache_memory(),
            **({} if self.streaming is None else self.streaming.stats()),
        }

    def decode(
        self, tokens: Sequence[Sequence[int] | mx.array], states: Sequence[State]
    ) -> mx.array:
        """Append one token to each of several sequences -> float32 [sequences, vocabulary], logits.

        Every weight is read once for all of them, or for each DECODED of them. Raises
        CapacityError, before anything is computed, if there are more sequences than rows.
        """
        check_rows(len(states), self.rows)
        self._regroup(states)
        logits: list[mx.array] = []
        for i in range(0, len(states), DECODED):
            x = self._step(tokens[i : i + DECODED], states[i : i + DECODED])
            logits.append(self.logits(x))
        joined = logits[0] if len(logits) == 1 else mx.concatenate(logits)
        mx.async_eval(joined)  # type: ignore[no-untyped-call]
        return joined

    def _step(
        self, tokens: Sequence[Sequence[int] | mx.array], states: Sequence[State]
    ) -> mx.array:
        """A token of each of up to DECODED sequences -> the last block's [sequences, hidden]."""
        rows = self._embedded(tokens)
        x, offsets = rows.x, [state.offset for state in states]
        nowhere = [anywhere(*offsets)] * len(self.blocks)
        paged = self.kernels.pages
        layers = places(offsets, [state.spots() for state in states]) if paged else nowhere
        for number, (block, place) in enumerate(zip(self.blocks, layers, strict=True)):
            x = block.attend.decode(x, [state.layers[number] for state in states], place)
            if self.streaming is not None:
                rows.read()  # streamed experts wait for the router, which needs the rows
            x = block.feed_forward(x, decoding=True)
        rows.read()
        for state in states:
            state.offset += 1
        return x

    def _embedded(self, tokens: Sequence[Sequence[int] | mx.array]) -> Rows:
        """The tokens' embeddings, which a lazily built step reads from the file later.

        A sampled token is then waited for only after the step that follows it has been built.
        """
        rows, kernels = self.embedding(*tokens), self.kernels
        if self.kv_bits is not None or not kernels.lazy:
            rows.read()
        elif kernels.trials is not None:
            kernels.trials.before = rows.read
        return rows

    def _regroup(self, states: Sequence[State]) -> None:
        """Let go of the pages of sequences that are no longer decoded together."""
        for state in self._together:
            if state not in states:
                state.leave()
        self._together = WeakSet(states)

    def sampler(
        self, options: Sampling, seed: int, prompt: Sequence[int]
    ) -> RuledSampler[mx.array]:
        return RuledSampler(self._operations, options, seed, prompt)

    def choose(
        self, logits: mx.array, draws: Sequence[Draw[RuledSampler[mx.array]]]
    ) -> Sequence[Choice[mx.array]]:
        """Queue the choice of a token for each of several sequences, from the logits of a step."""
        return self._operations.choose(logits, draws)


def _masks(tokens: int, state: State) -> tuple[mx.array | str | None, mx.array | str | None]:
    """Attention masks of a chunk in (full, sliding) layers; a single token needs none."""
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
    rows: int = 1,
    cache_limit: int = CACHE_LIMIT,
    wired: int = 0,
    kernels: Kernels | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """Load a checkpoint onto MLX's default device.

    dtype: "bfloat16" or "float32"; by default bfloat16 on a GPU and float32 on a CPU, where MLX
    multiplies quantized bfloat16 slowly and coarsely.
    slots: experts of a layer held at a time, all by default; the others are read when they are
    chosen. At least `least_slots`.
    kv_bits: 8 keeps keys and values of full-attention layers in 8 bits; by default as computed.
    chunk: tokens prefilled at a time. rows: sequences decoded at a time.
    cache_limit: bytes of freed buffers that MLX may keep.
    wired: bytes of memory that a GPU keeps resident (wired); without effect on a CPU.
    kernels: by default what `choose_kernels` finds for the device.
    Raises CheckpointError if a file cannot be read, is changed meanwhile, or holds an invalid scale
    or a float that is not finite, and ConfigError if kv_bits is given and head_dim is not a
    multiple of 32; KernelError if MLX is too old, or if GPTOSS_KERNELS has an unknown value or asks
    for a kernel that cannot be used.
    """
    require_mlx(mlx_version())
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
    slots = slots_of(config, slots)
    streaming = None
    if slots < config.num_local_experts:
        streaming = Streaming(checkpoint.tensors, reader, slots)
    unread = "model.embed_tokens." if embedding == "file" else None
    total = bytes_to_read(checkpoint, slots, without=unread)
    kernels = kernels or choose_kernels()
    with Loader(checkpoint, compute, total, progress, kernels, reader) as loader:
        table: Embedding = (
            ResidentEmbedding(checkpoint, loader)
            if embedding == "resident"
            else FileEmbedding(checkpoint, loader, reader)
        )
        model = Transformer(config, loader, table, streaming, kv_bits, chunk, rows)
        loader.finish()
    rehearse(model)
    return model


def _check_kv_group(checkpoint: Checkpoint) -> None:
    try:
        kv_group(checkpoint.config.head_dim)
    except ValueError as error:
        raise ConfigError(f"{checkpoint.folder / 'config.json'}: {error}") from error
