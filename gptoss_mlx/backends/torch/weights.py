"""Loading weights from a checkpoint's files onto the device, through a few pinned buffers.

Each thread reads a piece into a buffer of its own and copies it to the device, which converts
floats to the array's dtype. So the host holds one piece per thread, whatever the model's size, and
reading and copying overlap.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from gptoss_mlx.backends.loading import WeightLoader, named, stacked
from gptoss_mlx.backends.torch.current import launching_on
from gptoss_mlx.backends.torch.operands import Matrix
from gptoss_mlx.backends.torch.quantized import dequantize
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import ITEM_BYTES, Tensor
from gptoss_mlx.models.checkpoint import Checkpoint, Progress

PIECE = 16 << 20  # bytes a thread reads at a time

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "U8": torch.uint8}


class Loader(WeightLoader):
    """`WeightLoader` for tensors on one device. dtype: the compute dtype."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        total: int = 0,
        progress: Progress | None = None,
        reader: FileReader | None = None,
    ) -> None:
        super().__init__(checkpoint, total, progress, reader)
        self.dtype, self.device = dtype, device

    def dense(self, *names: str) -> torch.Tensor:
        """The named tensors, stacked along their first axis, in the compute dtype."""
        return self._filled(self.tensors(names), self.dtype)

    def raw(self, *names: str, rows: int | None = None) -> torch.Tensor:
        """The named tensors' bytes, stacked: uint8, the last axis counted in bytes.

        rows: only so many of each tensor's first axis.
        """
        tensors = [_as_bytes(tensor) for tensor in self.tensors(names, rows)]
        return self._filled(tensors, torch.uint8)

    def matrix(self, *modules: str) -> Matrix:
        """The named modules' matrices as one, stacked along their outputs.

        Quantized if the checkpoint has all of them in the same affine 8-bit form, else in the
        compute dtype.
        """
        specs = {self.spec(module) for module in modules}
        if specs == {None}:
            return Matrix(self.dense(*named(modules, "weight")))
        spec = specs.pop()
        if not specs and spec is not None and (spec.bits, spec.mode) == (8, "affine"):
            codes = self.raw(*named(modules, "weight"))
            scales = self.dense(*named(modules, "scales"))
            biases = self.dense(*named(modules, "biases"))
            return Matrix(codes, scales, biases)
        parts = [self._widened(module) for module in modules]
        return Matrix(parts[0] if len(parts) == 1 else torch.cat(parts))

    def bias(self, *modules: str) -> torch.Tensor:
        """The named modules' biases, concatenated."""
        return self.dense(*named(modules, "bias"))

    def _widened(self, module: str) -> torch.Tensor:
        """A module's matrix in the compute dtype [outputs, inputs], however it is kept."""
        spec = self.spec(module)
        if spec is None:
            return self.dense(f"{module}.weight")
        codes = self.raw(f"{module}.weight")
        if spec.mode == "affine":
            scales, biases = self.dense(f"{module}.scales"), self.dense(f"{module}.biases")
        else:
            scales, biases = self.raw(f"{module}.scales"), None
        self.finish()
        return dequantize(codes, scales, biases, spec, self.dtype)

    def _filled(self, tensors: list[Tensor], dtype: torch.dtype) -> torch.Tensor:
        out = torch.empty(stacked(tensors), dtype=dtype, device=self.device)
        self.queue(tensors, partial(self._fill, out.view(-1)), PIECE)
        return out

    def _fill(self, out: torch.Tensor, piece: Tensor, place: slice) -> None:
        with launching_on(self.device):
            self._copy(piece, out[place])

    def _copy(self, piece: Tensor, out: torch.Tensor) -> None:
        buffer = getattr(self.own, "pinned", None)
        if buffer is None:
            pinned = self.device.type == "cuda"
            buffer = torch.empty(PIECE, dtype=torch.uint8, pin_memory=pinned)
            self.own.pinned = buffer
        held = buffer[: piece.nbytes]
        self.reader.read_here([(piece, held.numpy().data)])
        out.copy_(held.view(_DTYPES[piece.dtype]))


def _as_bytes(tensor: Tensor) -> Tensor:
    *outer, last = tensor.shape
    return replace(tensor, dtype="U8", shape=(*outer, last * ITEM_BYTES[tensor.dtype]))
