"""Readers of a checkpoint's files whose reads end late, fail, or are begun anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import numpy as np

from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import Tensor, read_into


class ScriptedLoad:
    """Ends when it is waited for, not before; until then its memory holds garbage."""

    def __init__(self, targets: list[tuple[Tensor, memoryview]], rng: Random) -> None:
        self.targets, self.rng, self.read = targets, rng, 0
        for _, out in targets:
            np.frombuffer(out.cast("B"), np.uint8)[:] = 0x77
        self._some()

    def wait(self) -> None:
        self._some(len(self.targets))

    def failed(self) -> bool:
        return self.rng.random() < 0.1  # a read gone wrong is begun anew

    def abandon(self) -> bool:
        self._some()
        return self.read == len(self.targets)

    def _some(self, at_least: int = 0) -> None:
        """Some more targets are there now."""
        upto = max(at_least, self.rng.randint(self.read, len(self.targets)))
        for tensor, out in self.targets[self.read : upto]:
            read_into(tensor, out)
        self.read = max(self.read, upto)


@dataclass
class ScriptedReader:
    rng: Random

    reads: int = 0

    def read(self, targets: Iterator[tuple[Tensor, memoryview]]) -> ScriptedLoad:
        self.reads += 1
        return ScriptedLoad(list(targets), self.rng)

    def stop(self) -> None:
        """Nothing of it runs by itself."""


class FailingReader(FileReader):
    """Fails from the moment it is told to."""

    failing = False

    def read(self, targets: Any) -> Any:
        targets = list(targets)
        if self.failing:
            targets = [(cast(Tensor, _Missing(tensor)), out) for tensor, out in targets]
        return super().read(targets)


class _Missing:
    def __init__(self, tensor: Tensor) -> None:
        self.name, self.path, self.nbytes = tensor.name, tensor.path, tensor.nbytes
        self.offset = 1 << 50  # far behind the file's end
