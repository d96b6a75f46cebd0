"""Random weights made on the device they are for, by name, with no checkpoint and no disk.

`RandomLoader` hands out what `weights.Loader` would, so that what is built from it is the model
itself. Magnitudes are those of random_values.py: activations stay near one and every part matters.
The same name gives the same values on one kind of device.
"""

from __future__ import annotations

import math
from pathlib import Path
from zlib import crc32

import torch

from gptoss_mlx.backends.torch.cache import Cache
from gptoss_mlx.backends.torch.choice import Kernels
from gptoss_mlx.backends.torch.model import Transformer
from gptoss_mlx.backends.torch.operands import Matrix
from gptoss_mlx.models.checkpoint import expected_tensors
from gptoss_mlx.spec.config import ModelConfig
from tests.support.random_values import middle_scale, normal_of

GROUP = 64  # weights that share a scale where matrices are in 8 bits
_BYTE_STD = math.sqrt((256**2 - 1) / 12)


class RandomLoader:
    """Stands in for `weights.Loader`; everything is there at once.

    bits: 8 for matrices in bytes with a scale and a bias by group, the router's excepted.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        bits: int | None = None,
    ) -> None:
        self.config, self.dtype, self.device, self.bits = config, dtype, device, bits
        expected = expected_tensors(config, Path("config.json"))
        self._shapes = {name: shape for name, (_, shape) in expected.items()}

    def dense(self, *names: str) -> torch.Tensor:
        """The named tensors, stacked along their first axis, in the compute dtype."""
        return _stacked([self._floats(name) for name in names])

    def raw(self, *names: str, rows: int | None = None) -> torch.Tensor:
        """The named tensors' bytes, stacked; rows: only so many of the first axis."""
        return _stacked([self._bytes(name, rows) for name in names])

    def matrix(self, *modules: str) -> Matrix:
        """The named modules' matrices as one, their outputs in order."""
        if self.bits is None or any(module.endswith("router") for module in modules):
            return Matrix(self.dense(*(f"{module}.weight" for module in modules)))
        parts = zip(*(self._quantized(f"{module}.weight") for module in modules), strict=True)
        return Matrix(*(_stacked(list(part)) for part in parts))

    def bias(self, *modules: str) -> torch.Tensor:
        """The named modules' biases as one."""
        return self.dense(*(f"{module}.bias" for module in modules))

    def finish(self) -> None:
        """Nothing is on its way."""

    def _floats(self, name: str) -> torch.Tensor:
        normal = normal_of(name, self.config)
        made, random = self._empty(self._shapes[name], self.dtype), self._random(name)
        if normal is not None:
            return made.normal_(*normal, generator=random)
        made.normal_(0, 0.5, generator=random)
        # Biases of gates and ups: one in sixteen is large, so that some pass the SwiGLU limit.
        large = torch.rand(made.shape, device=self.device, generator=random) < 1 / 16
        return torch.where(large, 16 * made, made)

    def _bytes(self, name: str, rows: int | None) -> torch.Tensor:
        shape = self._shapes[name]
        made = self._empty(shape if rows is None else (rows, *shape[1:]), torch.uint8)
        if name.endswith("_blocks"):
            return made.random_(0, 256, generator=self._random(name))
        middle = middle_scale(name, self.config)
        return made.random_(middle - 1, middle + 2, generator=self._random(name))

    def _quantized(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bytes, scales and biases of a matrix whose values have the deviation its name asks."""
        normal = normal_of(name, self.config)
        assert normal is not None
        outputs, inputs = self._shapes[name]
        random = self._random(name)
        codes = self._empty((outputs, inputs), torch.uint8).random_(0, 256, generator=random)
        scales = self._empty((outputs, inputs // GROUP), self.dtype)
        scales.normal_(normal[1] / _BYTE_STD, normal[1] / _BYTE_STD / 10, generator=random)
        return codes, scales, -127.5 * scales

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _random(self, name: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(crc32(name.encode()))


def random_model(
    config: ModelConfig,
    kernels: Kernels,
    cache: Cache,
    chunk: int,
    bits: int | None = None,
) -> Transformer:
    """A model of random weights on the cache's device, in its dtype."""
    loader = RandomLoader(config, cache.arenas.dtype, cache.arenas.device, bits)
    model = Transformer(config, loader, kernels, cache, chunk)
    for block in model.blocks:
        block.moe.experts.pack()
    return model


def fill(cache: Cache) -> None:
    """Random keys and values in every place."""
    random = torch.Generator(cache.arenas.device).manual_seed(1)
    cache.arenas.normal_(generator=random)
    cache.rings.normal_(generator=random)


def _stacked(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
