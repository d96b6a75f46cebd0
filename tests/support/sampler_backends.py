"""The samplers of all backends behind one interface: numpy logits go in, and the draw can be
watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.backends.protocol import Choice, Draw
from gptoss_mlx.backends.sampler import Operations, RuledSampler
from gptoss_mlx.spec.sampling import Mask, Sampling

Drawn = Callable[[NDArray[np.float32]], int]


class OneSequence:
    """A sampler with its operations, asked for one sequence at a time."""

    def __init__(
        self, operations: Operations[Any], options: Sampling, seed: int, prompt: Sequence[int]
    ) -> None:
        self.operations = operations
        self.sampler = RuledSampler(operations, options, seed, prompt)

    def choose(self, logits: Any, step: int, mask: Mask | None) -> Choice[Any]:
        """logits: [vocabulary]"""
        draw = Draw(0, self.sampler, step, mask)
        return self.operations.choose(logits[None], [draw])[0]

    def accept(self, choice: Choice[Any]) -> None:
        self.sampler.accept(choice)


class Backend(Protocol):
    def operations(self, vocab: int) -> Operations[Any]: ...

    def sampler(
        self, options: Sampling, seed: int, prompt: Sequence[int], vocab: int
    ) -> OneSequence:
        return OneSequence(self.operations(vocab), options, seed, prompt)

    def array(self, logits: NDArray[np.float32] | Sequence[float]) -> Any: ...

    def halves(self, logits: NDArray[np.float32]) -> tuple[Any, Any]:
        """Logits in bfloat16, and those in float32 again."""

    def draw_by(self, patch: pytest.MonkeyPatch, draw: Drawn) -> None:
        """Let draw(scores of one sequence) -> index stand in for the random one."""


class Mlx(Backend):
    def __init__(self) -> None:
        import mlx.core as mx

        from gptoss_mlx.backends.mlx.sampler import Operations

        self.mx, self.operations = mx, Operations  # type: ignore[method-assign]

    def array(self, logits: NDArray[np.float32] | Sequence[float]) -> Any:
        return self.mx.array(logits, self.mx.float32)

    def halves(self, logits: NDArray[np.float32]) -> tuple[Any, Any]:
        half = self.array(logits).astype(self.mx.bfloat16)
        return half, half.astype(self.mx.float32)

    def draw_by(self, patch: pytest.MonkeyPatch, draw: Drawn) -> None:
        def categorical(operations: Any, scores: Any, keys: Sequence[int]) -> Any:
            return self.mx.array([draw(row) for row in np.array(scores)])

        patch.setattr(self.operations, "categorical", categorical)


class Native(Backend):
    """Of the kernels for CPUs, in numpy."""

    def __init__(self) -> None:
        from gptoss_mlx.backends.cpu.sampler import Operations

        self.operations = Operations  # type: ignore[method-assign]

    def array(self, logits: NDArray[np.float32] | Sequence[float]) -> Any:
        return np.array(logits, np.float32)

    def halves(self, logits: NDArray[np.float32]) -> tuple[Any, Any]:
        pytest.skip("logits are always float32 here")

    def draw_by(self, patch: pytest.MonkeyPatch, draw: Drawn) -> None:
        def categorical(operations: Any, scores: Any, keys: Sequence[int]) -> Any:
            return np.array([draw(row) for row in scores])

        patch.setattr(self.operations, "categorical", categorical)


class Torch(Backend):
    def __init__(self, device: str) -> None:
        self.torch = pytest.importorskip("torch")
        if device == "cuda" and not self.torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        self.device = device

    def operations(self, vocab: int) -> Operations[Any]:
        from gptoss_mlx.backends.torch.sampler import Operations

        return Operations(vocab, self.device)

    def array(self, logits: NDArray[np.float32] | Sequence[float]) -> Any:
        return self.torch.tensor(np.array(logits, np.float32), device=self.device)

    def halves(self, logits: NDArray[np.float32]) -> tuple[Any, Any]:
        half = self.array(logits).bfloat16()
        return half, half.float()

    def draw_by(self, patch: pytest.MonkeyPatch, draw: Drawn) -> None:
        from gptoss_mlx.backends.torch.sampler import Operations

        def categorical(operations: Any, scores: Any, keys: Sequence[int]) -> Any:
            return self.torch.tensor(
                [draw(row) for row in scores.cpu().numpy()], device=self.device
            )

        patch.setattr(Operations, "categorical", categorical)


def open_backend(name: str) -> Backend:
    """mlx, native, or torch's device; skips the test where it is not there."""
    return Mlx() if name == "mlx" else Native() if name == "native" else Torch(name)


BACKENDS = [
    pytest.param("mlx"),
    pytest.param("native"),
    pytest.param("cpu", marks=pytest.mark.torch),
    pytest.param("cuda", marks=pytest.mark.torch),
]
