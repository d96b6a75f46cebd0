"""The sampler's operations in PyTorch. They leave choices on the device and do not wait for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from gptoss_mlx.backends import sampler
from gptoss_mlx.spec.sampling import WORD

_WHOLE = 2**52  # a probability of 1 in fixed point


class Operations(sampler.Operations[torch.Tensor]):
    """The operations on tensors. device: the logits'."""

    def __init__(self, vocab: int, device: torch.device | str = "cpu") -> None:
        super().__init__(vocab)
        self._device = torch.device(device)
        self._generator = torch.Generator(self._device)

    def ids(self, values: Iterable[int]) -> torch.Tensor:
        return self._send(torch.tensor(list(values), dtype=torch.int64))

    def floats(self, values: Iterable[float]) -> torch.Tensor:
        return self._send(torch.tensor(list(values), dtype=torch.float32))

    def bits(self, packed: bytes) -> torch.Tensor:
        octets = self._send(torch.frombuffer(bytearray(packed), dtype=torch.uint8))
        places = torch.arange(8, dtype=torch.uint8, device=self._device)
        return ((octets[:, None] >> places) & 1).view(1, -1)[:, : self.vocab].bool()

    def _send(self, host: torch.Tensor) -> torch.Tensor:
        """Copy to the device, without waiting for what is queued there."""
        if self._device.type != "cuda":
            return host.to(self._device)
        return host.pin_memory().to(self._device, non_blocking=True)

    def zeros(self, size: int, *, flags: bool = False) -> torch.Tensor:
        dtype = torch.bool if flags else torch.float32
        return torch.zeros((1, size), dtype=dtype, device=self._device)

    def float32(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.float()

    def joined(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        return rows[0] if len(rows) == 1 else torch.cat([*rows])

    def flag(self, flags: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return flags.index_fill_(1, ids, True)

    def add(self, scores: torch.Tensor, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return scores.index_add(1, ids, values.expand(len(scores), -1))

    def ban(self, scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, ids, -torch.inf)

    def columns(self, scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return scores[:, ids]

    def take(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return x.gather(1, places[:, None])[:, 0]

    def where(
        self, condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor | float
    ) -> torch.Tensor:
        return torch.where(condition, a, b)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1)

    def max(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax(1, keepdim=True)

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.softmax(1)

    def log_softmax(self, x: torch.Tensor) -> torch.Tensor:
        """Summed in float64: on a CPU, a float32 sum over a whole vocabulary is off by 1e-5."""
        return x - x.double().logsumexp(1, keepdim=True).float()

    def argmax(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.argmax(1)

    def largest(self, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of equal values the first. By a stable sort: topk does not say which of them it takes."""
        values, places = x.sort(dim=1, descending=True, stable=True)
        return values[:, :k], places[:, :k]

    def least_of_top(self, p: torch.Tensor, top_p: float) -> torch.Tensor:
        descending = p.sort(1, descending=True).values
        # In fixed point, because the order in which a card adds floats varies.
        parts = (descending.double() * _WHOLE).long()
        before = parts.cumsum(1) - parts
        over = before >= math.ceil(top_p * _WHOLE)
        return descending.masked_fill(over, torch.inf).amin(1, keepdim=True)

    def categorical(self, scores: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
        """By the Gumbel-max trick: the place of the largest score plus Gumbel noise.

        In float64: in float32 a token with a probability of 1e-8 would never be drawn.
        """
        uniform = torch.empty(scores.shape, dtype=torch.float64, device=scores.device)
        for row, key in zip(uniform, keys, strict=True):
            self._generator.manual_seed(_mixed(key))
            row.uniform_(generator=self._generator)  # below 1, so that its logarithm is not 0
        return (scores - uniform.log_().neg_().log_()).argmax(1)

    def fetch(self, arrays: Sequence[torch.Tensor], views: Sequence[torch.Tensor]) -> sampler.Fetch:
        """In a single copy: joined with float32, ids become float32, exact below 2^24."""
        columns = [array if array.ndim == 2 else array[:, None] for array in arrays]
        sizes, numbers = [column.shape[1] for column in columns], torch.cat(columns, 1)

        def values(host: torch.Tensor) -> list[list[Any]]:
            parts = zip(arrays, host.split(sizes, 1), strict=True)
            return [part.reshape(array.shape).tolist() for array, part in parts]

        if not numbers.is_cuda:
            return lambda: values(numbers)
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(numbers.device))

        def wait() -> list[list[Any]]:
            copied.synchronize()
            return values(host)

        return wait


def _mixed(key: int) -> int:
    """The last steps of splitmix64 (Steele, Lea and Flood, 2014).

    Keys are mixed because torch's generator on a CPU uses only 32 bits of its seed.
    """
    z = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31
