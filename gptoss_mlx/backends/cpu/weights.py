"""Weight loading from a checkpoint's files into memory that the kernels read.

Matrices stay as the file has them: bfloat16, MXFP4, or affine codes with their scales and biases.
They also stay where it has them, mapped, so that a model that was used before is there at once;
unless the system maps files in small pages, and has memory for a copy in large ones. Formats that
the kernels lack, mxfp8 and nvfp4, are widened to float32 once. Norms, biases and sinks are float32.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import psutil
from numpy.typing import DTypeLike, NDArray

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.cpu.quantized import dequantize
from gptoss_mlx.backends.loading import HostLoader
from gptoss_mlx.files.shard import NUMPY
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.spec.config import QuantizationSpec
from gptoss_mlx.system.device import free_bytes
from gptoss_mlx.system.pages import LARGE, large_pages, mapped_large

Array: TypeAlias = NDArray[Any]

LEAST_COPIED = 1 << 30
"""Bytes of weights for which pages matter."""


class Operand(NamedTuple):
    """A matrix as the kernels take it, and the arrays that it lies in."""

    matrix: library.Matrix
    arrays: tuple[Array, ...]


class Loader(HostLoader):
    """A `HostLoader` of arrays for the kernels."""

    copied = False
    """Whether matrices are copied; otherwise they are mapped."""

    def floats(self, name: str) -> Array:
        """A tensor in float32."""
        tensors = self.tensors([name])
        out = allocate(tensors[0].shape, np.float32)
        self.read_floats(tensors, out)
        return out

    def raw(self, name: str) -> Array:
        """A tensor as the file has it; bfloat16 as its bits."""
        if self.copied:
            return self.slots(name, self.checkpoint.tensors[name].shape[0])
        return self.map(self.checkpoint.tensors[name])

    def slots(self, name: str, count: int) -> Array:
        """The first `count` of a tensor's first axis, copied."""
        tensors = self.tensors([name], count)
        out = allocate(tensors[0].shape, NUMPY[tensors[0].dtype])
        self.read_bytes(tensors, out)
        return out

    def operand(self, module: str) -> Operand:
        """A module's matrix."""
        spec = self.spec(module)
        if spec is None:
            return operand_of(self._narrow(f"{module}.weight"))
        weight, biases = self.raw(f"{module}.weight"), None
        if spec.mode == "affine":
            scales, biases = self._narrow(f"{module}.scales"), self._narrow(f"{module}.biases")
        else:
            scales = self.raw(f"{module}.scales")
        if spec.mode not in library.FORMATS:
            return operand_of(dequantize(weight.view(np.uint8), scales, spec))
        return operand_of(weight, scales, biases, spec)

    def _narrow(self, name: str) -> Array:
        """A tensor as bfloat16's bits, or in float32 if it has another dtype."""
        return (
            self.raw(name) if self.checkpoint.tensors[name].dtype == "BF16" else self.floats(name)
        )


def operand_of(
    weight: Array,
    scales: Array | None = None,
    biases: Array | None = None,
    spec: QuantizationSpec | None = None,
) -> Operand:
    """A matrix of arrays as the file has them: float32, bfloat16's bits, or codes in words."""
    arrays = tuple(array for array in (weight, scales, biases) if array is not None)
    outputs, columns = weight.shape
    if spec is None:
        mode, bits, group, wide = _DENSE[weight.dtype.itemsize], 8 * weight.itemsize, 0, False
    else:
        mode, bits, group = spec.mode, spec.bits, spec.group_size
        wide = scales is not None and scales.dtype == np.float32
    inputs = columns * 8 * weight.itemsize // bits
    addresses = map(library.address, (weight, scales, biases))
    form = library.FORMATS[mode]
    return Operand(library.Matrix(form, bits, group, wide, outputs, inputs, *addresses), arrays)


def worth_copying(checkpoint: Checkpoint, nbytes: int) -> bool:
    """Whether weights are copied into large pages: where the system maps these files in small ones,
    and a quarter of its memory is left afterwards.

    A processor looks the address of each page up; in a virtual machine that takes so long that
    steps on small pages take up to half as long again. nbytes: of the weights.
    """
    memory = psutil.virtual_memory().total
    free = free_bytes()
    if nbytes < LEAST_COPIED or free is None or free - nbytes < memory // 4 or not large_pages():
        return False
    return not mapped_large(checkpoint.largest_file())


_DENSE = {2: "BF16", 4: "F32"}  # by the bytes of a value


def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """An array of zeros of its own memory, in large pages where the system has them: a step reads
    all weights once, and with small pages it waits for their addresses too."""
    nbytes = prod(shape) * np.dtype(dtype).itemsize
    if nbytes < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE)
    with suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)
