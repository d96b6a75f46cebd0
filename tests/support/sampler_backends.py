"""Both samplers under one hand: numpy logits go in, and the draw can be watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.spec.sampling import Sampling

Draw = Callable[[NDArray[np.float32]], int]


class Backend(Protocol):
    def sampler(self, options: Sampling, seed: int, prompt: Sequence[int], vocab: int) -> Any: ...

    def array(self, logits: NDArray[np.float32] | Sequence[float]) -> Any: ...

    def halves(self, logits: NDArray[np.float32]) -> tuple[Any, Any]:
        """Logits in bfloat16, and those in float32 again."""

    def draw_by(self, patch: pytest.MonkeyPatch, draw: Draw) -> None:
        """Let draw(scores) -> index stand in for the random one."""


class Mlx:
    def __init__(self) -> None:
        import mlx.core as mx

        from gptoss_mlx.backends.mlx.sampler import Sampler

        self.mx, self.sampler = mx, Sampler

    def array(self, logits: NDArray[np.float32] | Sequence[float]) -> Any:
        return self.mx.array(logits, self.mx.float32)

    def halves(self, logits: NDArray[np.float32]) -> tuple[Any, Any]:
        half = self.array(logits).astype(self.mx.bfloat16)
        return half, half.astype(self.mx.float32)

    def draw_by(self, patch: pytest.MonkeyPatch, draw: Draw) -> None:
        def categorical(sampler: Any, scores: Any, key: int) -> Any:
            return self.mx.array([draw(np.array(scores))])

        patch.setattr(self.sampler, "categorical", categorical)


class Torch:
    def __init__(self, device: str) -> None:
        self.torch = pytest.importorskip("torch")
        if device == "cuda" and not self.torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        self.device = device

    def sampler(self, options: Sampling, seed: int, prompt: Sequence[int], vocab: int) -> Any:
        from gptoss_mlx.backends.torch.sampler import Sampler

        return Sampler(options, seed, prompt, vocab, self.device)

    def array(self, logits: NDArray[np.float32] | Sequence[float]) -> Any:
        return self.torch.tensor(np.array(logits, np.float32), device=self.device)

    def halves(self, logits: NDArray[np.float32]) -> tuple[Any, Any]:
        half = self.array(logits).bfloat16()
        return half, half.float()

    def draw_by(self, patch: pytest.MonkeyPatch, draw: Draw) -> None:
        from gptoss_mlx.backends.torch.sampler import Sampler

        def categorical(sampler: Any, scores: Any, key: int) -> Any:
            return self.torch.tensor([draw(scores.cpu().numpy())], device=self.device)

        patch.setattr(Sampler, "categorical", categorical)


def open_backend(name: str) -> Backend:
    """mlx, or torch's device; skips the test where it is not there."""
    return Mlx() if name == "mlx" else Torch(name)


BACKENDS = [
    pytest.param("mlx"),
    pytest.param("cpu", marks=pytest.mark.torch),
    pytest.param("cuda", marks=pytest.mark.torch),
]
