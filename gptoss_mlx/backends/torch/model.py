"""gpt-oss in PyTorch: embedding, blocks of attention and experts, logits.

x is [tokens, hidden]: a chunk of one sequence in prefill, one token of each of up to MOST_ROWS
sequences in decoding.
Formulas: OpenAI, gpt-oss/torch/model.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from gptoss_mlx.backends.loading import bytes_to_read
from gptoss_mlx.backends.protocol import Choice, Draw, Layout
from gptoss_mlx.backends.sampler import RuledSampler
from gptoss_mlx.backends.state import Copied
from gptoss_mlx.backends.torch import mxfp4, segments
from gptoss_mlx.backends.torch.blocks import Block, Norm
from gptoss_mlx.backends.torch.cache import Cache, State
from gptoss_mlx.backends.torch.choice import Kernels, choose_kernels
from gptoss_mlx.backends.torch.current import launching_on
from gptoss_mlx.backends.torch.experts import on_kernels
from gptoss_mlx.backends.torch.graph import Graphs
from gptoss_mlx.backends.torch.operands import Matrix
from gptoss_mlx.backends.torch.places import Chunk, Step
from gptoss_mlx.backends.torch.reference import dense
from gptoss_mlx.backends.torch.sampler import Operations
from gptoss_mlx.backends.torch.streaming import Streaming
from gptoss_mlx.backends.torch.weights import Loader
from gptoss_mlx.models.checkpoint import Checkpoint, Progress
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.rope import periods
from gptoss_mlx.spec.sampling import Sampling
from gptoss_mlx.system.device import peak_bytes
from gptoss_mlx.system.heap import keep_few_shapes, return_freed

MOST_ROWS = 32
SCORED = 64  # tokens whose logits are on the device at a time


class Transformer:
    """The whole model on one device.

    rows: sequences it has memory for. streaming: None where every expert is resident.
    """

    def __init__(
        self,
        config: ModelConfig,
        loader: Loader,
        kernels: Kernels,
        cache: Cache,
        chunk: int,
        streaming: Streaming | None = None,
    ) -> None:
        self.config, self.device, self.cache = config, loader.device, cache
        self.chunk, self.kernels, self.streaming = chunk, kernels, streaming
        self.embedding = loader.matrix("model.embed_tokens")
        per_pair = torch.from_numpy(periods(config).astype(np.float32)).to(self.device)
        self.blocks = [
            Block(config, loader, kernels, layer, per_pair, streaming)
            for layer in range(config.num_hidden_layers)
        ]
        self.norm = Norm(config, loader, kernels, "model.norm")
        self.lm_head = loader.matrix("lm_head")
        self.dtype = loader.dtype
        captured = self.device.type == "cuda" and kernels.capturable and streaming is None
        self._operations = Operations(config.vocab_size, self.device)
        self._step = Graphs(self._one_each, self.device) if captured else self._one_each

    @property
    def rows(self) -> int:
        return self.cache.rows

    @property
    def rejected(self) -> Mapping[str, str]:
        """Operations that fell back from their Triton kernel to the reference, and why."""
        return self.kernels.rejected

    def new_state(self) -> State:
        """An empty sequence. There may be more sequences than rows: see cache.py."""
        return self.cache.new_state()

    @torch.inference_mode()
    def restore(self, copies: Sequence[Copied[torch.Tensor]]) -> State:
        """A new sequence, which has a row, from segments that follow one another."""
        state = self.cache.new_state()
        state.restore(copies)
        return state

    def layout(self, tokens: int) -> Layout:
        """What a segment of so many tokens consists of."""
        return segments.layout(self.cache, tokens)

    def to_host(self, segment: Copied[torch.Tensor]) -> list[NDArray[np.uint8]]:
        return segments.to_host(segment)

    def from_host(
        self, start: int, end: int, data: Sequence[NDArray[np.uint8]]
    ) -> Copied[torch.Tensor]:
        return segments.from_host(start, end, data, self.cache)

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], state: State) -> None:
        """Append a chunk to the KV cache and wait for the device; no logits are computed."""
        with launching_on(self.device):
            x, updates, places = self._begin(ids, state)
            for block in self.blocks[:-1]:
                x, updates = block(x, updates, places)
            self.blocks[-1].keep(x, updates, places)
            state.offset += len(ids)
            if self.device.type == "cuda":
                torch.cuda.synchronize()

    @torch.inference_mode()
    def evaluate(self, ids: Sequence[int], state: State) -> NDArray[np.float32]:
        """Append a chunk -> the logits after each of its tokens, float32 [tokens, vocabulary]."""
        out = np.empty((len(ids), self.config.vocab_size), np.float32)
        with launching_on(self.device):
            x, updates, places = self._begin(ids, state)
            for block in self.blocks:
                x, updates = block(x, updates, places)
            state.offset += len(ids)
            _, h = self.norm(x, updates)
            for i in range(0, len(out), SCORED):
                out[i : i + SCORED] = self._logits(h[i : i + SCORED]).cpu().numpy()
        return out

    @torch.inference_mode()
    def decode(
        self, tokens: Sequence[Sequence[int] | torch.Tensor], states: Sequence[State]
    ) -> torch.Tensor:
        """Append one token to each of several sequences -> logits float32 [n, vocabulary].

        Raises CapacityError, before anything is computed, if there are more sequences than rows.
        """
        ids = torch.cat([self._on_device(token) for token in tokens])
        rows = self.cache.seat(states)
        where = self._indices([[s.offset for s in states], rows])
        with launching_on(self.device):
            logits = self._step(ids, where)
        for state in states:
            state.offset += 1
        return logits

    def sampler(
        self, options: Sampling, seed: int, prompt: Sequence[int]
    ) -> RuledSampler[torch.Tensor]:
        return RuledSampler(self._operations, options, seed, prompt)

    def choose(
        self, logits: torch.Tensor, draws: Sequence[Draw[RuledSampler[torch.Tensor]]]
    ) -> Sequence[Choice[torch.Tensor]]:
        """Queue the choice of a token for each of several sequences, from the logits of a step."""
        return self._operations.choose(logits, draws)

    def stats(self) -> dict[str, float]:
        """Memory in bytes, and what streaming did (`streaming.Counts`).

        active, peak, cache: on a card what PyTorch has allocated, its peak, and what it keeps for
        reuse; on a CPU the resident memory of the process, its peak, and 0.
        """
        counts = {} if self.streaming is None else self.streaming.stats()
        if self.device.type != "cuda":
            resident = psutil.Process().memory_info().rss
            held = {"active_bytes": resident, "peak_bytes": peak_bytes()}
            return {**held, "cache_bytes": 0, **counts}
        active, reserved = (
            ask(self.device) for ask in (torch.cuda.memory_allocated, torch.cuda.memory_reserved)
        )
        return {
            "active_bytes": active,
            "peak_bytes": torch.cuda.max_memory_allocated(self.device),
            "cache_bytes": reserved - active,
            **counts,
        }

    def _one_each(self, ids: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """A decoding step, as a CUDA graph captures it: ids [n], where int32 [2, n], positions and
        rows -> logits [n, vocabulary]."""
        x, updates = self._embed(ids), None
        places = Step(self.cache, where[0], where[1])
        for block in self.blocks:
            x, updates = block(x, updates, places)
        _, h = self.norm(x, updates)
        return self._logits(h)

    def _begin(self, ids: Sequence[int], state: State) -> tuple[torch.Tensor, None, Chunk]:
        x = self._embed(self._on_device(ids))
        return x, None, Chunk(self.cache, state, len(ids))

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        table = self.embedding
        if table.scales is None or table.biases is None:
            return table.weight[ids]
        rows = Matrix(table.weight[ids], table.scales[ids], table.biases[ids])
        return dense(rows, self.dtype)

    def _logits(self, h: torch.Tensor) -> torch.Tensor:
        return self.kernels.linear(h, self.lm_head, None, torch.float32)

    def _on_device(self, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        return ids.long() if isinstance(ids, torch.Tensor) else self._indices(ids).long()

    def _indices(self, values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
        """The values as int32 on the device, without waiting for it."""
        if self.device.type != "cuda":
            return torch.tensor(values, dtype=torch.int32)
        pinned = torch.tensor(values, dtype=torch.int32, pin_memory=True)
        return pinned.to(self.device, non_blocking=True)


def open_model(
    checkpoint: Checkpoint,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    context: int | None = None,
    rows: int = 1,
    slots: int | None = None,
    chunk: int = 512,
    kernels: Kernels | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """Load a checkpoint onto a PyTorch device.

    dtype: "bfloat16" or "float32"; by default bfloat16 on a card and float32 on a CPU.
    context: tokens a sequence may have, by default the model's limit; rows: sequences at a time.
    slots: experts of a layer on the device, all by default; the others are streamed when chosen.
    kernels: by default what `choose_kernels` finds for the device.
    Raises CheckpointError if a file cannot be read, is changed meanwhile, or holds an invalid scale
    or a float that is not finite; KernelError as `choose_kernels` does.
    """
    return_freed()
    keep_few_shapes()
    config, place = checkpoint.config, torch.device(device)
    compute: torch.dtype = getattr(
        torch, dtype or ("bfloat16" if place.type == "cuda" else "float32")
    )
    slots = slots or config.num_local_experts
    if not config.num_experts_per_tok <= slots <= config.num_local_experts:
        raise ValueError(f"{slots} slots are not within one token's experts and all of them")
    reader, streaming = checkpoint.reader(), None
    if slots < config.num_local_experts:
        streaming = Streaming(checkpoint.tensors, reader, place, slots)
    cache = Cache(config, rows, context or config.max_position_embeddings, compute, place)
    total = bytes_to_read(checkpoint, slots)
    with launching_on(place):
        kernels = kernels or choose_kernels(place, compute)
        most = mxfp4.MOST_SCALE if on_kernels(kernels) else 254
        checkpoint.check_scales(most=most, reader=reader)
        with Loader(checkpoint, compute, place, total, progress, reader) as loader:
            model = Transformer(config, loader, kernels, cache, chunk, streaming)
            loader.finish()
        for block in model.blocks:
            block.moe.experts.pack()
    return model
