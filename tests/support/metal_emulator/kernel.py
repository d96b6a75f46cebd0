"""A callable with the signature of what mx.fast.metal_kernel returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from . import arrays
from .errors import MetalError
from .launches import Array
from .runtime import Argument
from .source import Generated, generate

Three = tuple[int, int, int]
MOST_THREADS = 1024
"""Of a threadgroup, on every Apple GPU."""
Run = Callable[[str, Generated, dict[str, Argument], Three, Three, list[Array], list[Array]], None]


@dataclass(frozen=True)
class Names:
    """A kernel's name and those of its inputs and outputs."""

    kernel: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class MetalKernel:
    """Generates the text of a call, gathers its buffers, and hands both to `run`."""

    names: Names
    mlx: Callable[..., Any]
    row_contiguous: bool
    run: Run
    texts: dict[object, Generated] = field(default_factory=dict)
    """Of earlier calls: a text depends on dtypes and on which inputs are tiny or 0-d."""

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: Three,
        threadgroup: Three,
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: object | None = None,
    ) -> list[mx.array]:
        """The outputs, computed. `stream` is MLX's; here everything runs at once."""
        given = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
        shapes = [tuple(shape) for shape in output_shapes]
        call: dict[str, Any] = {
            "output_shapes": shapes,
            "output_dtypes": list(output_dtypes),
            "grid": tuple(grid),
            "threadgroup": tuple(threadgroup),
            "init_value": init_value,
        }
        if template:
            call["template"] = list(template)
        text = self._text(given, call)
        if verbose:
            print(text.text.body)
        arguments = self._inputs(given)
        for name, shape, dtype in zip(self.names.outputs, shapes, output_dtypes, strict=True):
            data = arrays.output(shape, dtype, init_value)
            arguments[name] = Argument(name, data, True, init_value is not None)
        read = [
            described(n, x.shape, x.dtype) for n, x in zip(self.names.inputs, given, strict=True)
        ]
        written = [
            described(n, s, d)
            for n, s, d in zip(self.names.outputs, shapes, output_dtypes, strict=True)
        ]
        size = fitted(self.names.kernel, grid, threadgroup)
        self.run(self.names.kernel, text, arguments, grid, size, read, written)
        return [
            arrays.to_mlx(arguments[name].data, dtype)
            for name, dtype in zip(self.names.outputs, output_dtypes, strict=True)
        ]

    def _text(self, given: list[mx.array], call: dict[str, Any]) -> Generated:
        kinds = tuple((str(x.dtype), x.ndim == 0, x.size < 8) for x in given)
        key = (kinds, str(call["output_dtypes"]), str(call.get("template")))
        if key not in self.texts or len(call["output_shapes"]) != len(self.names.outputs):
            self.texts[key] = generate(self.names.kernel, self.mlx, given, **call)
        return self.texts[key]

    def _inputs(self, given: list[mx.array]) -> dict[str, Argument]:
        """Each input, and its shape, strides and number of dimensions, by parameter name."""
        found = {}
        for name, array in zip(self.names.inputs, given, strict=True):
            view = arrays.contiguous(array) if self.row_contiguous else arrays.viewed(array)
            shape = np.array(array.shape, np.int32)
            strides = np.array(arrays.element_strides(view), np.int64)
            for suffix, data in (
                ("", arrays.raw(view)),
                ("_shape", shape),
                ("_strides", strides),
                ("_ndim", np.array([array.ndim], np.int32)),
            ):
                found[name + suffix] = Argument(name + suffix, data, False, True)
        return found


def described(name: str, shape: Sequence[int], dtype: mx.Dtype) -> Array:
    """An input or output as a launch records it."""
    elements = int(np.prod(shape, dtype=np.int64))
    return Array(name, tuple(shape), arrays.name_of(dtype), elements * dtype.size)


def fitted(name: str, grid: Sequence[int], threadgroup: Sequence[int]) -> Three:
    """The threadgroup MLX dispatches, no larger than the grid. Raises MetalError if not sizes."""
    for what, sizes in (("grid", grid), ("threadgroup", threadgroup)):
        if len(sizes) != 3 or any(not isinstance(n, int) or n < 1 for n in sizes):
            raise MetalError(f"{name}: {what} {tuple(sizes)} is not three counts of 1 or more")
    x, y, z = (min(t, g) for t, g in zip(threadgroup, grid, strict=True))
    asked = threadgroup[0] * threadgroup[1] * threadgroup[2]
    if asked > MOST_THREADS:
        raise MetalError(f"{name}: {asked} threads in a threadgroup, the limit is {MOST_THREADS}")
    return x, y, z
