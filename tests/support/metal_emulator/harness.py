"""What the emulator's tests share: small calls of one input and one output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from . import Emulator, Launch, MetalError, available

needs_clang = pytest.mark.skipif(available() is not None, reason=str(available()))
ORDERS = ("forward", "reverse", "random")
IDS = "uint i = thread_position_in_grid.x; uint t = thread_index_in_threadgroup;\n"
FIRST_LINE = 7
"""Of the source after IDS, in the text of a kernel without header that names two attributes."""


def run(
    source: str,
    *inputs: mx.array,
    header: str = "",
    threads: int = 64,
    threadgroup: int = 64,
    shape: Sequence[int] | None = None,
    dtype: mx.Dtype = mx.float32,
    emulator: Emulator | None = None,
    atomic_outputs: bool = False,
    **call: Any,
) -> mx.array:
    """The output `out` of a kernel of inputs `x`, `y`, `z`; without inputs `x` is 0, 1, 2, ..."""
    given = list(inputs) or [mx.arange(threads).astype(mx.float32)]
    kernel = (emulator or Emulator()).metal_kernel(
        name="small",
        input_names=["x", "y", "z"][: len(given)],
        output_names=["out"],
        source=IDS + source,
        header=header,
        atomic_outputs=atomic_outputs,
    )
    return kernel(
        inputs=given,
        output_shapes=[shape or (threads,)],
        output_dtypes=[dtype],
        grid=(threads, 1, 1),
        threadgroup=(threadgroup, 1, 1),
        **call,
    )[0]


def values(array: mx.array) -> npt.NDArray[Any]:
    """An array's elements; bfloat16 as float32."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def fault(source: str, *inputs: mx.array, **options: Any) -> str:
    """The message of the MetalError that the kernel raises."""
    with pytest.raises(MetalError) as caught:
        run(source, *inputs, **options)
    return str(caught.value)


def traced(source: str, *inputs: mx.array, **options: Any) -> Launch:
    """The launch, with its traffic."""
    emulator = Emulator(trace=True)
    run(source, *inputs, emulator=emulator, **options)
    return emulator.launches[0]
