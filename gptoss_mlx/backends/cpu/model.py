"""gpt-oss on a CPU: embedding, blocks of attention and experts, logits.

A step is a list of kernels with their arguments, called one after another; nothing is computed in
Python but the angles of RoPE. What a step reads and writes is in `step.Buffers`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import psutil
from numpy.typing import NDArray

from gptoss_mlx.backends.bank import PrefetchStreaming
from gptoss_mlx.backends.cpu import library, segments
from gptoss_mlx.backends.cpu.blocks import Block
from gptoss_mlx.backends.cpu.cache import EVERYTHING, Layers, State, Window
from gptoss_mlx.backends.cpu.embedding import Embedding, FileEmbedding, ResidentEmbedding
from gptoss_mlx.backends.cpu.linear import Projection
from gptoss_mlx.backends.cpu.sampler import Operations
from gptoss_mlx.backends.cpu.step import Buffers, Call, Spans, Step, run
from gptoss_mlx.backends.cpu.weights import Loader, worth_copying
from gptoss_mlx.backends.loading import bytes_to_read
from gptoss_mlx.backends.protocol import Choice, Draw, Layout
from gptoss_mlx.backends.sampler import RuledSampler
from gptoss_mlx.backends.state import Copied, check_rows
from gptoss_mlx.backends.streaming import batched, slots_of
from gptoss_mlx.errors import CapacityError
from gptoss_mlx.models.checkpoint import Checkpoint, Progress
from gptoss_mlx.plan.cpu_buffers import own_bytes, shared_bytes
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.sampling import Sampling
from gptoss_mlx.system.cores import fast_cores
from gptoss_mlx.system.device import peak_bytes
from gptoss_mlx.system.heap import return_freed

Array: TypeAlias = NDArray[Any]

CHUNK = 512  # tokens prefilled at a time, unless a plan says otherwise
SCORED = 64  # tokens whose logits are computed at a time


class Transformer:
    """The whole model in the host's memory.

    streaming: None where every expert is resident. rows: sequences decoded at a time. context: the
    most tokens of a sequence.
    """

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        device: library.Device,
        embedding: Embedding,
        layers: Layers,
        context: int,
        streaming: PrefetchStreaming | None = None,
        chunk: int = CHUNK,
        rows: int = 1,
    ) -> None:
        self.config, self.context, self.chunk, self.rows = config, context, chunk, rows
        self.device, self.layers, self.streaming = device, layers, streaming
        self.reader = loader.reader
        self.rejected: Mapping[str, str] = {}
        self.embedding = embedding
        self.buffers = Buffers(config, max(chunk, rows), rows, context)
        self.window = Window(layers, self.buffers.tokens)
        self._operations = Operations(config.vocab_size)
        numbers = range(config.num_hidden_layers)
        self.blocks = [Block(config, loader, layer, streaming) for layer in numbers]
        for block, following in pairwise(self.blocks):
            block.moe.foresee(following.moe)
        norm = loader.floats("model.norm.weight")
        self.lm_head = Projection(loader, ["lm_head"], norm, config.rms_norm_eps, bias=False)
        self._steps: dict[int, tuple[Spans, list[Call]]] = {}
        self._full = np.array([not config.is_sliding(layer) for layer in numbers])

    def new_state(self) -> State:
        """An empty sequence."""
        return State(self.layers)

    def restore(self, parts: Sequence[Copied[Array]]) -> State:
        """A new sequence from segments, each of which begins where the one before ends."""
        state = self.new_state()
        state.restore(parts)
        return state

    def layout(self, tokens: int) -> Layout:
        """What a segment of so many tokens consists of."""
        return segments.layout(self.layers, tokens)

    def to_host(self, segment: Copied[Array]) -> list[NDArray[np.uint8]]:
        return segments.to_host(segment)

    def from_host(self, start: int, end: int, arrays: Sequence[NDArray[np.uint8]]) -> Copied[Array]:
        return segments.from_host(start, end, arrays, self.layout(end - start))

    def prefill(self, ids: Sequence[int], state: State) -> None:
        """Append a chunk; no logits are computed."""
        for part in batched(ids, self.buffers.tokens):
            self._append(part, state, answered=False)

    def evaluate(self, ids: Sequence[int], state: State) -> NDArray[np.float32]:
        """Append a chunk -> the logits after each of its tokens, float32 [tokens, vocabulary]."""
        out, done = np.empty((len(ids), self.config.vocab_size), np.float32), 0
        for part in batched(ids, self.buffers.tokens):
            self._append(part, state, answered=True)
            for i in range(0, len(part), SCORED):
                rows = out[done + i : done + min(i + SCORED, len(part))]
                self._logits(self.buffers.x[i:], rows)
            done += len(part)
        return out

    def decode(self, tokens: Sequence[Sequence[int] | Array], states: Sequence[State]) -> Array:
        """Append one token to each of several sequences -> float32 [sequences, vocabulary], logits.

        Raises CapacityError, before anything is computed, if there are more sequences than rows, or
        if one would become longer than the context.
        """
        check_rows(len(states), self.rows)
        ids, n = [int(token[0]) for token in tokens], len(states)
        if n not in self._steps:
            self._steps[n] = self._step(n)
        spans, calls = self._steps[n]
        for row, state in enumerate(states):
            self._make_room(state, 1)
            seen = min(state.offset, self.layers.window - 1)
            spans.each[:, row, 1] = np.where(self._full, state.offset, seen)
            spans.each[:, row, 3] = state.pointers
            ring = state.offset % self.layers.window
            spans.writes[:, row] = np.where(self._full, state.offset, ring)
        self._begin(ids, np.array([state.offset for state in states]))
        run(calls)
        for state in states:
            state.offset += 1
        return self._logits(self.buffers.x, np.empty((n, self.config.vocab_size), np.float32))

    def sampler(self, options: Sampling, seed: int, prompt: Sequence[int]) -> RuledSampler[Array]:
        return RuledSampler(self._operations, options, seed, prompt)

    def choose(
        self, logits: Array, draws: Sequence[Draw[RuledSampler[Array]]]
    ) -> Sequence[Choice[Array]]:
        """Choose a token for each of several sequences, from the logits of a step."""
        return self._operations.choose(logits, draws)

    def stats(self) -> dict[str, float]:
        """The resident memory of the process and its peak, in bytes; the counts of streaming
        (`bank.GuessCounts`)."""
        resident = psutil.Process().memory_info().rss
        held: dict[str, float] = {
            "active_bytes": resident,
            "peak_bytes": peak_bytes(),
            "cache_bytes": 0,
        }
        return held if self.streaming is None else {**held, **self.streaming.stats()}

    def _step(self, n: int) -> tuple[Spans, list[Call]]:
        """The calls of a decode step of n sequences, and what they attend to."""
        spans, calls = Spans(len(self.blocks), n), list[Call]()
        spans.each[:, :, 0], spans.each[:, :, 2] = 1, EVERYTHING
        step = Step(self.device, self.buffers, spans, n)
        for layer, block in enumerate(self.blocks):
            pages = self.layers.pages if self._full[layer] else self.layers.ring
            calls += block.attention.keep(step, layer, pages)
            calls += block.attention.attend(step, layer, pages)
            calls += block.moe.calls(step)
        return spans, calls

    def _make_room(self, state: State, tokens: int) -> None:
        """Raises CapacityError if the sequence would become longer than the context."""
        if state.offset + tokens > self.context:
            raise CapacityError(
                f"a sequence of {state.offset + tokens} tokens is longer than the context of"
                f" {self.context}"
            )
        state.reserve(state.offset + tokens)

    def _begin(self, ids: Sequence[int], positions: Array) -> None:
        """A step's embeddings and angles. Raises CheckpointError if a file has been changed, since
        weights may be mapped."""
        self.reader.check_unchanged()
        self.embedding(ids, self.buffers.x, self.device)
        self.buffers.turn(positions)

    def _append(self, ids: Sequence[int], state: State, *, answered: bool) -> None:
        """Append a chunk. answered: False leaves out all that only its logits depend on."""
        n, offset, window = len(ids), state.offset, self.window
        self._make_room(state, n)
        self._begin(ids, np.arange(offset, offset + n))
        spans, earlier = Spans(len(self.blocks), 1), window.earlier(offset)
        spans.each[:, 0] = (n, offset, EVERYTHING, 0)
        spans.each[:, 0, 3] = state.pointers
        spans.each[~self._full, 0] = (n, earlier, self.layers.window, window.pointer)
        spans.writes[:, 0] = np.where(self._full, offset, earlier)
        step = Step(self.device, self.buffers, spans, n)
        for layer, block in enumerate(self.blocks):
            needed = answered or layer < len(self.blocks) - 1
            self._attend(block, layer, state, step, needed=needed)
            if needed:
                run(block.moe.calls(step))
        state.offset += n

    def _attend(self, block: Block, layer: int, state: State, step: Step, *, needed: bool) -> None:
        """One layer's keys and values of a chunk, and its attention if it is needed."""
        full, attention = bool(self._full[layer]), block.attention
        pages = self.layers.pages if full else self.window.pages
        ring = None if full else state.rings[self.layers.sliding.index(layer)]
        if ring is not None:
            self.window.gather(ring, state.offset)
        run(attention.keep(step, layer, pages))
        if ring is not None:
            self.window.scatter(ring, state.offset, step.tokens)
        if needed:
            run(attention.attend(step, layer, pages))

    def _logits(self, x: Array, out: Array) -> Array:
        """x [tokens, hidden] -> out float32 [tokens, vocabulary]"""
        call = self.lm_head.call(x, out, len(out))
        self.device.linear(self.device.handle, ctypes.byref(call))
        return out


def open_model(
    checkpoint: Checkpoint,
    *,
    dtype: str | None = None,
    embedding: str = "file",
    slots: int | None = None,
    kv_bits: int | None = None,
    context: int | None = None,
    chunk: int = CHUNK,
    rows: int = 1,
    threads: int | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """Load a checkpoint for the kernels of native/.

    dtype: of the KV cache, "float32" by default; all is computed in float32. slots: experts of a
    layer held at a time, all by default; the others are read when they are chosen. At least
    `least_slots`. kv_bits: 8 keeps keys and values of full-attention layers in 8 bits. context: the
    most tokens of a sequence, by default the model's limit. chunk: tokens prefilled at a time.
    rows: sequences decoded at a time. threads: by default one a core that computes fast. variant:
    of the kernels, by default as `library.choose_variant` says.
    Raises CheckpointError if a file cannot be read, is changed meanwhile, or holds an invalid scale
    or a float that is not finite; KernelError if there are no kernels here; MemoryError.
    """
    return_freed()
    config, reader = checkpoint.config, checkpoint.reader()
    checkpoint.check_scales(reader=reader)
    slots = slots_of(config, slots)
    streaming = None
    if slots < config.num_local_experts:
        streaming = PrefetchStreaming(checkpoint.tensors, reader, slots)
    device = library.Device(
        library.choose_variant(variant),
        threads or fast_cores(),
        own_bytes(config),
        shared_bytes(config, max(chunk, rows)),
    )
    unread = "model.embed_tokens." if embedding == "file" else None
    total = bytes_to_read(checkpoint, slots, without=unread)
    with Loader(checkpoint, total, progress, reader) as loader:
        loader.copied = worth_copying(checkpoint, total)
        table: Embedding = (
            ResidentEmbedding(loader)
            if embedding == "resident"
            else FileEmbedding(checkpoint, loader, reader)
        )
        layers = Layers.of(config, dtype or "float32", kv_bits)
        limit = context or config.max_position_embeddings
        model = Transformer(config, loader, device, table, layers, limit, streaming, chunk, rows)
        loader.finish()
    return model
