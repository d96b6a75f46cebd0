"""Expert streaming: the output of a resident bank, from a bank with fewer slots than experts.

The router's choice of each layer is read back to the host. Experts that have a slot are computed at
once; meanwhile the others are read from the files, which the system's page cache holds as far as
there is room, into pinned buffers. From there they are copied to slots of experts that the wave
does not need. A chunk that needs more experts than there are slots visits them in waves.

No slot is written while a computation may read it, because both are queued on one CUDA stream, in
order. With the environment variable GPTOSS_DEBUG_SLOTS=1 this is checked at every visit and every
write. It is then also checked that a buffer is reused only after the reads into it and the copies
out of it have ended. A violation raises AssertionError at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gptoss_mlx.backends.slots import debugging
from gptoss_mlx.backends.streaming import (
    Counts,
    ExpertStreaming,
    batched,
    filled,
    pairs_visiting,
)
from gptoss_mlx.backends.torch import mxfp4
from gptoss_mlx.backends.torch.experts import Experts
from gptoss_mlx.files.pool import Tasks
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import Tensor

STAGED = 8
"""Experts in flight at a time: for gpt-oss 13 MB each, 106 MB of pinned memory in all."""


class Streaming(ExpertStreaming):
    """`ExpertStreaming` with a ring of STAGED buffers that experts are read into."""

    def __init__(
        self, tensors: Mapping[str, Tensor], reader: FileReader, device: torch.device, slots: int
    ) -> None:
        super().__init__(tensors, reader, slots, Counts())
        self.device = device
        self._buffers: list[Buffer] = []
        self._next = 0
        self._debugging = debugging()
        self._stream: int | None = None  # the one that slots are read and written on

    def buffer(self, nbytes: int) -> Buffer:
        """The least recently used buffer, once its content has been copied to the device."""
        if len(self._buffers) < STAGED:
            self._buffers.append(Buffer(nbytes, self.device))
            return self._buffers[-1]
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % STAGED
        buffer.wait()
        if self._debugging and not buffer.free():
            raise AssertionError("a buffer is given away while it is in use")
        return buffer

    def check_stream(self) -> None:
        """When debugging, check that slots are read and written on one stream only."""
        if not self._debugging or self.device.type != "cuda":
            return
        stream = torch.cuda.current_stream(self.device).cuda_stream
        if self._stream not in (None, stream):
            raise AssertionError(f"slots are used on the streams {self._stream} and {stream}")
        self._stream = stream

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Buffer:
    """A host buffer for one expert, pinned if the device is a card."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.on_card = device.type == "cuda"
        self.data = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.on_card)
        self._taken: torch.cuda.Event | None = None
        self.load: Tasks | None = None  # the latest reads into it

    def free(self) -> bool:
        """Whether the reads into it and the copies of its content have ended."""
        read = self.load is None or self.load.idle()
        return read and (self._taken is None or bool(self._taken.query()))

    def sent(self) -> None:
        """Record an event behind the copies to the device, which have been queued."""
        if self.on_card:
            self._taken = torch.cuda.Event()
            self._taken.record()

    def wait(self) -> None:
        if self._taken is not None:
            self._taken.synchronize()


@dataclass(frozen=True)
class _Coming:
    """An expert being read into a buffer. views: of the buffer, in the order of `Experts.files`."""

    expert: int
    buffer: Buffer
    views: tuple[torch.Tensor, ...]
    load: Tasks


class StreamedExperts:
    """One layer's experts, in a bank with fewer slots than experts. Called like `Experts`."""

    def __init__(self, experts: Experts, streaming: Streaming) -> None:
        self.experts, self.streaming = experts, streaming
        self.table = filled(experts.experts, experts.size)
        self._files = [streaming.tensors[name] for name in experts.files]

    def pack(self) -> None:
        self.experts.pack()

    def empty(self) -> None:
        self.table.clear()

    def __call__(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The residual updates of the k experts chosen for each token, in the order of choice.

        x [tokens, hidden], the router's logits [tokens, experts] -> float32 [tokens, k, hidden]
        Raises CheckpointError if a read fails; the bank is then empty, and the next call fills it.
        """
        kernels = self.experts.kernels
        experts, weights = kernels.router_topk(logits, self.experts.k)
        chosen = experts.cpu().numpy()
        self.table.use(chosen.reshape(-1).tolist(), steps=len(chosen))
        out = x.new_empty(chosen.size, x.shape[1], dtype=torch.float32)
        with self.streaming.changing(self):
            for wave in self._waves(np.unique(chosen).tolist()):
                self.streaming.check_stream()
                visits = pairs_visiting(chosen, wave)
                slots = self._on_device(self._slots(chosen.reshape(-1, 1)[visits])).int()
                pairs = self._on_device(visits)
                tile = kernels.tile_for(len(pairs), self.experts.size)
                groups = kernels.group_pairs(slots, self.experts.size, tile)
                token = torch.div(pairs, chosen.shape[1], rounding_mode="floor")
                ids, shares = experts.reshape(-1, 1)[pairs], weights.reshape(-1, 1)[pairs]
                out[pairs] = self.experts.visit(x[token], groups, ids, shares)[:, 0]
        return out.reshape(*chosen.shape, -1)

    def _waves(self, needed: Sequence[int]) -> Iterator[list[int]]:
        """Waves of the needed experts, each once: those in slots, then others as they arrive."""
        present = [e for e in needed if e in self.table.slot_of]
        missing = [e for e in needed if e not in self.table.slot_of]
        counts = self.streaming.counts
        counts.hits += len(present)
        counts.misses += len(missing)
        batches = [*batched(missing, min(STAGED // 2, self.experts.size))]
        coming = [self._read(expert) for expert in batches[0]] if batches else []
        if present:
            yield present
        for i, batch in enumerate(batches):
            arrived = coming
            self._await(arrived)
            following = batches[i + 1] if i + 1 < len(batches) else []
            for one in arrived:
                self._place(one, batch)
            coming = [self._read(expert) for expert in following]
            yield batch

    def _read(self, expert: int) -> _Coming:
        """Begin to read an expert into a buffer."""
        tensors = [tensor[expert] for tensor in self._files]
        sizes = [tensor.nbytes for tensor in tensors]
        buffer = self.streaming.buffer(sum(sizes))
        views = torch.split(buffer.data, sizes)
        reads = [(t, view.numpy().data) for t, view in zip(tensors, views, strict=True)]
        self.streaming.counts.bytes_read += sum(sizes)
        buffer.load = self.streaming.reader.read(reads)
        return _Coming(expert, buffer, views, buffer.load)

    def _await(self, coming: Sequence[_Coming]) -> None:
        begun = time.perf_counter()
        for one in coming:
            one.load.wait()
        self.streaming.counts.stall += time.perf_counter() - begun

    def _place(self, coming: _Coming, keep: Sequence[int]) -> None:
        """Claim a slot for an expert that has been read, and queue its copy into it."""
        slot = self.table.claim(coming.expert, keep)
        assert slot is not None  # a wave is never larger than the bank
        bank, device = self.experts.bank, self.streaming.device
        self.streaming.check_stream()
        copies = [view.to(device, non_blocking=True) for view in coming.views]
        coming.buffer.sent()
        shaped = [
            copy.reshape(array.shape[1:]) for copy, array in zip(copies, bank.matrices, strict=True)
        ]
        if bank.packed:
            shaped = [*mxfp4.pack(*shaped[:2]), *mxfp4.pack(*shaped[2:])]
        for array, part in zip(bank.matrices, shaped, strict=True):
            array[slot].copy_(part)

    def _slots(self, visits: NDArray[np.int32]) -> NDArray[np.int64]:
        slot_of = np.full(self.experts.experts, -1, np.int64)
        for expert, slot in self.table.slot_of.items():
            slot_of[expert] = slot
        return slot_of[visits]

    def _on_device(self, values: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.streaming.device)
