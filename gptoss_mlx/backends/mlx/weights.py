"""Weight loading from a checkpoint's files into MLX arrays, which lie in the host's memory."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from gptoss_mlx.backends.loading import HostLoader, named, stacked
from gptoss_mlx.backends.mlx.linear import Linear
from gptoss_mlx.backends.mlx.ops.choice import Kernels
from gptoss_mlx.backends.mlx.ops.matrix import Matrix
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import ITEM_BYTES
from gptoss_mlx.models.checkpoint import Checkpoint, Progress, Tensor


class Loader(HostLoader):
    """A `HostLoader` of MLX arrays.

    kernels: what projections and experts compute with; by default the references.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: mx.Dtype,
        total: int = 0,
        progress: Progress | None = None,
        kernels: Kernels | None = None,
        reader: FileReader | None = None,
    ) -> None:
        super().__init__(checkpoint, total, progress, reader)
        self.dtype, self.kernels = dtype, kernels or Kernels()

    def dense(self, *names: str) -> mx.array:
        """The named tensors, stacked along their first axis, in the compute dtype."""
        tensors = self.tensors(names)
        if self.dtype == mx.bfloat16 and all(t.dtype == "BF16" for t in tensors):
            return evaluated(self._raw(tensors, stacked(tensors), mx.uint16).view(mx.bfloat16))
        out = _allocate(stacked(tensors), mx.float32)
        self.read_floats(tensors, np.asarray(out))
        if self.dtype != mx.float32:
            self.finish()
            out = evaluated(out.astype(self.dtype))
        return out

    def raw(self, *names: str, dtype: mx.Dtype, rows: int | None = None) -> mx.array:
        """The named tensors' bytes as they are, stacked, their last axis seen as `dtype`.

        rows: how many of the first axis to read; all by default.
        """
        tensors = self.tensors(names, rows)
        *outer, last = stacked(tensors)
        width = last * ITEM_BYTES[tensors[0].dtype] // dtype.size
        return self._raw(tensors, (*outer, width), dtype)

    def linear(self, *modules: str, bias: bool = True) -> Linear:
        """One projection made of the named modules' outputs, in order; they must be alike."""
        return Linear(self.matrix(*modules), self.bias(*modules) if bias else None, self.kernels)

    def matrix(self, *modules: str) -> Matrix:
        """The named modules' matrices as one, their outputs in order; they must be alike."""
        spec = self.spec(modules[0])
        if spec is None:
            return Matrix(self.dense(*named(modules, "weight")))
        weight = self.raw(*named(modules, "weight"), dtype=mx.uint32)
        if spec.mode != "affine":
            scales = self.raw(*named(modules, "scales"), dtype=mx.uint8)
            return Matrix(weight, scales, None, spec)
        scales, biases = (
            self.dense(*named(modules, "scales")),
            self.dense(*named(modules, "biases")),
        )
        return Matrix(weight, scales, biases, spec)

    def bias(self, *modules: str) -> mx.array:
        """The named modules' biases as one."""
        return self.dense(*named(modules, "bias"))

    def alike(self, *modules: str) -> bool:
        """Whether the modules share one quantization, so that `linear` can join them."""
        return len({self.spec(module) for module in modules}) == 1

    def _raw(self, tensors: list[Tensor], shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
        out = _allocate(shape, dtype)
        self.read_bytes(tensors, np.asarray(out))
        return out


def _allocate(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return evaluated(mx.zeros(shape, dtype=dtype))


def evaluated(array: mx.array) -> mx.array:
    """The array, computed now. A lazy one can be computed only on the thread that made it, whose
    stream it has; a model is opened on one thread and used on others."""
    mx.eval(array)
    return array
