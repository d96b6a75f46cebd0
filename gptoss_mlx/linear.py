"""A projection: dense, or in any of MLX's quantizations."""

from __future__ import annotations

import mlx.core as mx

from gptoss_mlx.config import QuantizationSpec
from gptoss_mlx.kernels.matmul import matmul


class Linear:
    """y = x W^T + b.

    weight [outputs, inputs] in the compute dtype; or, with a spec, packed uint32 beside
    scales [outputs, inputs / group] and, in affine mode, biases of the same shape.
    """

    def __init__(
        self,
        weight: mx.array,
        bias: mx.array | None = None,
        scales: mx.array | None = None,
        biases: mx.array | None = None,
        spec: QuantizationSpec | None = None,
    ) -> None:
        self.weight, self.bias = weight, bias
        self.scales, self.biases, self.spec = scales, biases, spec

    def __call__(self, x: mx.array) -> mx.array:
        """x [tokens, inputs] -> [tokens, outputs]"""
        if self.spec is None or self.scales is None:
            y = matmul(x, self.weight)
        else:
            y = mx.quantized_matmul(
                x,
                self.weight,
                self.scales,
                self.biases,
                transpose=True,
                group_size=self.spec.group_size,
                bits=self.spec.bits,
                mode=self.spec.mode,
            )
        return y if self.bias is None else y + self.bias
