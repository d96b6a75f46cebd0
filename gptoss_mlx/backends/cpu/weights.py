"""Weight loading from a checkpoint's files into memory that the kernels read.

Matrices stay as the file has them, and where it has them: they are mapped, so that nothing is
copied, and a model that was used before is there at once. They are bfloat16, MXFP4, or affine codes
with their scales and biases. Formats that the kernels lack, mxfp8 and nvfp4, are widened to float32
once. Norms, biases and sinks are float32.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.cpu.quantized import dequantize
from gptoss_mlx.backends.loading import HostLoader
from gptoss_mlx.files.shard import NUMPY
from gptoss_mlx.spec.config import QuantizationSpec

Array: TypeAlias = NDArray[Any]

HUGE = 2 << 20  # bytes of a huge page


class Operand(NamedTuple):
    """A matrix as the kernels take it, and the arrays that it lies in."""

    matrix: library.Matrix
    arrays: tuple[Array, ...]


class Loader(HostLoader):
    """A `HostLoader` of arrays for the kernels."""

    def floats(self, name: str) -> Array:
        """A tensor in float32."""
        tensors = self.tensors([name])
        out = allocate(tensors[0].shape, np.float32)
        self.read_floats(tensors, out)
        return out

    def raw(self, name: str) -> Array:
        """A tensor as the file has it, mapped; bfloat16 as its bits."""
        return self.map(self.checkpoint.tensors[name])

    def slots(self, name: str, count: int) -> Array:
        """The first `count` of an experts' tensor, copied: others will be read in their place."""
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


_DENSE = {2: "BF16", 4: "F32"}  # by the bytes of a value


def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """An array of zeros of its own memory, in huge pages where the system has them: a step reads
    all weights once, and with small pages it waits for their addresses too."""
    nbytes = prod(shape) * np.dtype(dtype).itemsize
    if nbytes < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)
