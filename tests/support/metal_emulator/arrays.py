"""MLX arrays to memory that a kernel reads, and back."""

from __future__ import annotations

import ctypes
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

NUMPY: dict[mx.Dtype, str] = {
    mx.bool_: "u1",
    mx.uint8: "u1",
    mx.int8: "i1",
    mx.uint16: "u2",
    mx.int16: "i2",
    mx.uint32: "u4",
    mx.int32: "i4",
    mx.uint64: "u8",
    mx.int64: "i8",
    mx.float16: "f2",
    mx.float32: "f4",
    mx.bfloat16: "u2",
}
POISON = 0xFF
"""Every byte of an output before the kernel runs: a NaN in all floating types."""


ALIGNMENT = 256
"""Bytes. Kernels may cast a buffer's type: Metal begins every buffer at a multiple of these."""


def aligned(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """C-contiguous data where a buffer may lie: itself, or a copy."""
    if data.ctypes.data % ALIGNMENT == 0:
        return data
    room = np.empty(data.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + data.nbytes].view(data.dtype).reshape(data.shape)
    copy[...] = data
    return copy


def name_of(dtype: mx.Dtype) -> str:
    """`float32` for mx.float32."""
    return str(dtype).removeprefix("mlx.core.")


def viewed(array: mx.array) -> npt.NDArray[Any]:
    """The array's memory as numpy sees it, strides and all; bfloat16 as uint16."""
    mx.eval(array)
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.asarray(array)


def contiguous(array: mx.array) -> npt.NDArray[Any]:
    """The elements in row-major order; one element for a 0-d array."""
    return aligned(np.ascontiguousarray(viewed(array)))


def raw(view: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """All bytes from a view's first element to its last, strides untouched."""
    if view.size == 0:
        return np.zeros(0, np.uint8)
    if view.flags.c_contiguous:
        return aligned(view)
    reach = sum((n - 1) * abs(s) for n, s in zip(view.shape, view.strides, strict=True))
    return aligned(
        np.frombuffer(ctypes.string_at(view.ctypes.data, reach + view.itemsize), dtype=np.uint8)
    )


def element_strides(view: npt.NDArray[Any]) -> list[int]:
    """Strides in elements, as MLX counts them."""
    return [stride // view.itemsize for stride in view.strides]


def output(shape: tuple[int, ...], dtype: mx.Dtype, value: float | None) -> npt.NDArray[Any]:
    """An output before the kernel: `value` everywhere, or poison."""
    if value is not None:
        return aligned(np.array(contiguous(mx.full(shape, value, dtype=dtype))).reshape(shape))
    kind = np.dtype(NUMPY[dtype])
    poison = np.full(int(np.prod(shape)) * kind.itemsize, POISON, np.uint8)
    return aligned(poison.view(kind).reshape(shape))


def to_mlx(data: npt.NDArray[Any], dtype: mx.Dtype) -> mx.array:
    """The array of `dtype` that the memory holds."""
    array = mx.array(data)
    if dtype == mx.bfloat16:
        return array.view(mx.bfloat16)
    return array.astype(dtype) if dtype == mx.bool_ else array
