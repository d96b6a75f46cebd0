"""The operations MLX would queue on a Mac for a function's outputs, traced on any machine.

`mx.export_function` traces a function without running it, and Metal kernels of one's own can be
traced like anything else. What MLX decides by the device would be decided for a CPU here: while
`Tracer.open` is in force, `mx.default_device` answers with a GPU, and the operations that on a CPU
are taken apart (RMSNorm, RoPE, attention, quantization, compiled functions) are each one stand-in
that carries their name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from typing import Any
from unittest.mock import patch

import mlx.core as mx

PREFIX = "standin"


def named(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


VIEWS = named(
    "Broadcast Copy Depends ExpandDims Flatten NumberOfElements Reshape Slice Split Squeeze"
    " StopGradient Transpose Unflatten View"
)
"""Operations that make no array of their own. The export merges equal ones."""

_FAST = {"rms_norm": "RMSNorm", "rope": "RoPE", "scaled_dot_product_attention": "Attention"}
_PLAIN = {"quantize": "Quantize", "dequantize": "Quantize"}
_NAME = re.compile(rf"custom_kernel_{PREFIX}([A-Za-z]+)_")
_LABEL = re.compile(r'label ="([^"]*)"')


@dataclass(frozen=True)
class Operand:
    """An array by its name in the graph; itemsize in bytes."""

    name: str
    shape: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class Node:
    """One operation. arguments: as MLX exports the primitive's state. kernel: of a Metal kernel."""

    primitive: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    arguments: tuple[Any, ...]
    kernel: str = ""


@dataclass(frozen=True)
class _Compiled:
    """A function that was compiled, and the arrays (shape, dtype) it was called with."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass
class Tracer:
    """Traces functions; modules that compile functions on import are to be imported under it."""

    compiled: list[_Compiled] = field(default_factory=list)
    kernels: set[str] = field(default_factory=set)
    constants: list[mx.array] = field(default_factory=list)
    """What the last trace read besides its inputs, numbers that are equal once."""
    sources: int = 0
    """How many arrays that was, each for itself."""
    tracing: bool = False

    @contextmanager
    def open(self) -> Iterator[None]:
        """MLX as it were on a Mac, wherever a function is being traced."""
        with ExitStack() as stack:
            for module, names in ((mx.fast, _FAST), (mx, _PLAIN)):
                for name, primitive in names.items():
                    found = getattr(module, name)
                    replacement = self._stand_in(primitive, found)
                    stack.enter_context(patch.object(module, name, replacement))
            stack.enter_context(patch.object(mx, "compile", self._compile))
            for name in ("eval", "async_eval"):
                replacement = self._unless_tracing(getattr(mx, name))
                stack.enter_context(patch.object(mx, name, replacement))
            stack.enter_context(patch.object(mx.fast, "metal_kernel", self._named()))
            stack.enter_context(patch.object(mx, "default_device", self._device()))
            yield

    def trace(self, function: Callable[..., Sequence[mx.array]], *inputs: mx.array) -> list[Node]:
        """What the outputs need, in an order they can be computed in.

        Raises ValueError if the export has merged operations that would run one by one.
        """
        found: list[dict[str, Any]] = []
        dot = StringIO()

        def traced(*arrays: mx.array) -> Sequence[mx.array]:
            outputs = function(*arrays)
            mx.export_to_dot(dot, *outputs)
            return outputs

        self.tracing = True
        try:
            mx.export_function(found.append, traced, *inputs)
        finally:
            self.tracing = False
        self.sources = dot.getvalue().count("rank=source") - len(inputs)
        nodes = [self._node(entry) for entry in found if entry["type"] == "primitive"]
        kept = [entry["constants"] for entry in found if entry["type"] == "constants"]
        self.constants = [array for entries in kept for _, array in entries]
        drawn = sum(name.split()[0] not in VIEWS for name in _LABEL.findall(dot.getvalue()))
        if drawn != sum(node.primitive not in VIEWS for node in nodes):
            raise ValueError(f"equal operations among {drawn} were merged in the export")
        return nodes

    def inside(self, compiled: _Compiled) -> list[Node]:
        """The operations of a compiled function."""
        arrays = [mx.zeros(*a) for a in compiled.arguments if isinstance(a, tuple)]

        def call(*given: mx.array) -> Sequence[mx.array]:
            values = iter(given)
            outputs = compiled.function(
                *(next(values) if isinstance(a, tuple) else a for a in compiled.arguments)
            )
            return [outputs] if isinstance(outputs, mx.array) else list(outputs)

        return self.trace(call, *arrays)

    def _node(self, entry: dict[str, Any]) -> Node:
        inputs, outputs = (
            tuple(Operand(name, tuple(shape), dtype.size) for name, shape, dtype in entry[side])
            for side in ("inputs", "outputs")
        )
        primitive, arguments, kernel = entry["name"], tuple(entry["arguments"]), ""
        if primitive == "CustomKernel":
            stand_in = _NAME.match(arguments[0])
            if stand_in is not None:
                primitive, arguments = stand_in[1], ()
            else:
                called = arguments[0].removeprefix("custom_kernel_")
                kernel = max(filter(called.startswith, self.kernels), key=len)
        return Node(primitive, inputs, outputs, arguments, kernel)

    def _stand_in(self, primitive: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            outputs = function(*arguments, **options)
            if not self.tracing:
                return outputs
            given = [*arguments, *options.values()]
            return _opaque(primitive, [a for a in given if isinstance(a, mx.array)], outputs)

        return call

    def _compile(self, function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            outputs = function(*arguments, **options)
            if not self.tracing:
                return outputs
            if any(isinstance(value, mx.array) for value in options.values()):
                raise ValueError("a compiled function is called with an array as a keyword")
            shapes = ((a.shape, a.dtype) if isinstance(a, mx.array) else a for a in arguments)
            self.compiled.append(_Compiled(partial(function, **options), tuple(shapes)))
            return _opaque("Compiled", [a for a in arguments if isinstance(a, mx.array)], outputs)

        return call

    def _unless_tracing(self, function: Callable[..., None]) -> Callable[..., None]:
        return lambda *arrays: None if self.tracing else function(*arrays)

    def _device(self) -> Callable[[], mx.Device]:
        real = mx.default_device
        return lambda: mx.Device(mx.gpu) if self.tracing else real()

    def _named(self) -> Callable[..., Any]:
        real: Callable[..., Any] = mx.fast.metal_kernel

        def build(name: str, *arguments: Any, **options: Any) -> Any:
            self.kernels.add(name)
            return real(name, *arguments, **options)

        return build


def _opaque(primitive: str, inputs: Sequence[mx.array], like: Any) -> Any:
    """A node of that name from the inputs to arrays as the given ones."""
    outputs = [like] if isinstance(like, mx.array) else list(like)
    names = [f"in{i}" for i in range(len(inputs))]
    kernel: Any = _metal_kernel(
        name=f"{PREFIX}{primitive}",
        input_names=names,
        output_names=[f"out{i}" for i in range(len(outputs))],
        source="uint i = thread_position_in_grid.x;",
    )
    made = kernel(
        inputs=list(inputs),
        grid=(1, 1, 1),
        threadgroup=(1, 1, 1),
        output_shapes=[a.shape for a in outputs],
        output_dtypes=[a.dtype for a in outputs],
    )
    return made[0] if isinstance(like, mx.array) else type(like)(made)


_metal_kernel = mx.fast.metal_kernel
