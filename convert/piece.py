"""A tensor of the released layout, made from byte ranges of any source's files by a rule.

Every source becomes a mapping from released names to pieces; nothing is read until `read`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.files.shard import ITEM_BYTES, NUMPY, Tensor, read_into

from . import rules

Rule = Callable[..., NDArray[Any]]
"""The same rows of every input -> those rows of the piece, in the released bytes."""


@dataclass(frozen=True)
class Piece:
    """dtype and shape as released; the inputs have the same number of rows (first axis)."""

    dtype: str
    shape: tuple[int, ...]
    inputs: tuple[Tensor, ...]
    rule: Rule = rules.same

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes of the rows start to stop. Raises CheckpointError if a file ends early."""
        values = self.rule(*(_array(tensor.rows(start, stop)) for tensor in self.inputs))
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _array(tensor: Tensor) -> NDArray[Any]:
    values = np.empty(tensor.shape, NUMPY[tensor.dtype])
    read_into(tensor, values.reshape(-1).view(np.uint8).data)
    return values
