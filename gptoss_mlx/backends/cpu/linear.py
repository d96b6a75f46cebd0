"""A projection: y = norm(x) W^T + bias + residual."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.cpu.weights import Loader, Operand

Array: TypeAlias = NDArray[Any]


class Projection:
    """A projection of the named modules' outputs, in order; norm, bias and residual are
    optional."""

    def __init__(
        self,
        loader: Loader,
        modules: Sequence[str],
        norm: Array | None = None,
        eps: float = 0.0,
        *,
        bias: bool = True,
    ) -> None:
        self.operands: list[Operand] = [loader.operand(module) for module in modules]
        biases = [loader.floats(f"{module}.bias") if bias else None for module in modules]
        parts = (library.LinearPart * len(modules))(
            *(
                library.LinearPart(operand.matrix, library.address(held))
                for operand, held in zip(self.operands, biases, strict=True)
            )
        )
        self._held = (norm, biases, parts)
        self.struct = library.Linear(parts, len(parts), library.address(norm), eps)

    def call(
        self, x: Array, y: Array, rows: int, residual: Array | None = None
    ) -> library.LinearCall:
        """The arguments of a call. x [rows, inputs], y and residual [rows, outputs], which may be
        one array."""
        address = library.address
        return library.LinearCall(
            ctypes.pointer(self.struct), rows, address(x), address(residual), address(y)
        )
