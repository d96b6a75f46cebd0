"""Expert streaming, as far as all devices share it: counts, waves, and recovery of banks.

A layer has fewer slots than experts (slots.py). An expert that has none is read from the file when
the router chooses it. A prompt's chunk may choose more than there are slots; it then visits them in
waves, each computed while the next one is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.slots import SlotTable
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import Tensor
from gptoss_mlx.plan.buffers import least_slots
from gptoss_mlx.spec.config import ModelConfig


@dataclass
class Counts:
    """What streaming did. An expert counts once for each step of a layer that chose it.

    hits: experts that were in memory or on their way there; misses: those that had to be asked for.
    stall: seconds spent waiting for reads.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    stall: float = 0.0


class Streamed(Protocol):
    """One layer's bank of slots."""

    def empty(self) -> None:
        """Forget what is in the slots. Called when nothing is being read into them any more."""


class ExpertStreaming(ABC):
    """State that the streaming layers of one model share: the reader, the counts, and the banks in
    doubt, those of which a change has begun and not ended.

    tensors: the checkpoint's, by name. slots: per layer.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], reader: FileReader, slots: int, counts: Counts
    ) -> None:
        self.tensors, self.reader, self.slots, self.counts = tensors, reader, slots, counts
        self._in_doubt: list[Streamed] = []

    def stats(self) -> dict[str, float]:
        return {"slots": self.slots, **asdict(self.counts)}

    @contextmanager
    def changing(self, bank: Streamed) -> Iterator[None]:
        """Change a bank in the body: if this fails or is interrupted, the bank is emptied.

        If a second interrupt stops that too, the next call begins by emptying the bank.
        """
        self._settle()
        with self.also_changing(bank):
            yield

    @contextmanager
    def also_changing(self, bank: Streamed) -> Iterator[None]:
        """Change a further bank while one is being changed: a failure empties both."""
        self._in_doubt.append(bank)
        try:
            yield
        except BaseException:
            self._settle()
            raise
        self._in_doubt.pop()

    def _settle(self) -> None:
        if not self._in_doubt:
            return
        self.reader.stop()  # also reads that an interrupt kept from being recorded
        self.synchronize()
        while self._in_doubt:
            self._in_doubt[-1].empty()
            self._in_doubt.pop()

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for the device's pending copies from host buffers."""


def slots_of(config: ModelConfig, slots: int | None) -> int:
    """The slots of a layer: those asked for, by default one for each expert. Raises ValueError."""
    slots = slots or config.num_local_experts
    if not least_slots(config) <= slots <= config.num_local_experts:
        raise ValueError(f"{slots} slots are not within one token's experts and all of them")
    return slots


def filled(experts: int, slots: int) -> SlotTable:
    """The table of a freshly loaded bank: expert e lies in slot e, for the first `slots`."""
    table = SlotTable(experts, slots)
    for expert in range(slots):
        table.claim(expert, keep=())
    return table


def batched(values: Sequence[int], size: int) -> Iterator[list[int]]:
    """The values in parts of at most `size`: experts in waves, a prompt in chunks."""
    for start in range(0, len(values), size):
        yield list(values[start : start + size])


def pairs_visiting(chosen: NDArray[np.generic], wave: Sequence[int]) -> NDArray[np.intp]:
    """Which of the (token, choice) pairs of chosen [tokens, k] visit a wave's experts: [pairs]."""
    return np.flatnonzero(np.isin(chosen, wave))
