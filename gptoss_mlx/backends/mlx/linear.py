"""A projection: dense, or in any of MLX's quantizations."""

from __future__ import annotations

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.choice import Kernels
from gptoss_mlx.backends.mlx.ops.matrix import Matrix, Norm


class Linear:
    """A projection, y = norm(x) W^T + b + residual; norm, b and residual are optional."""

    def __init__(
        self, matrix: Matrix, bias: mx.array | None = None, kernels: Kernels | None = None
    ) -> None:
        self.matrix, self.bias = matrix, bias
        self.kernels = kernels or Kernels()

    def __call__(
        self,
        x: mx.array,
        *,
        norm: Norm | None = None,
        residual: mx.array | None = None,
        dtype: mx.Dtype | None = None,
    ) -> mx.array:
        """x [tokens, inputs], residual [tokens, outputs] -> [tokens, outputs], by default of x's
        dtype"""
        return self.kernels.quantized_matvec(x, self.matrix, self.bias, norm, residual, dtype)
