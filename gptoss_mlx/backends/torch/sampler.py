"""The sampler's operations in PyTorch. They leave choices on the device and do not wait for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from gptoss_mlx.backends.sampler import Fetch, RuledSampler
from gptoss_mlx.spec.sampling import WORD, Sampling

_WHOLE = 2**52  # a probability of 1 in fixed point


class Sampler(RuledSampler[torch.Tensor]):
    """`RuledSampler` on tensors. device: the logits'."""

    def __init__(
        self,
        options: Sampling,
        seed: int,
        prompt: Sequence[int],
        vocab: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._device = torch.device(device)
        self._generator = torch.Generator(self._device)
        super().__init__(options, seed, prompt, vocab)

    def ids(self, values: Iterable[int]) -> torch.Tensor:
        return self._send(torch.tensor(list(values), dtype=torch.int64))

    def floats(self, values: Iterable[float]) -> torch.Tensor:
        return self._send(torch.tensor(list(values), dtype=torch.float32))

    def bits(self, packed: bytes) -> torch.Tensor:
        octets = self._send(torch.frombuffer(bytearray(packed), dtype=torch.uint8))
        places = torch.arange(8, dtype=torch.uint8, device=self._device)
        return ((octets[:, None] >> places) & 1).flatten()[: self.vocab].bool()

    def _send(self, host: torch.Tensor) -> torch.Tensor:
        """Copy to the device, without waiting for what is queued there."""
        if self._device.type != "cuda":
            return host.to(self._device)
        return host.pin_memory().to(self._device, non_blocking=True)

    def zeros(self, size: int, *, flags: bool = False) -> torch.Tensor:
        dtype = torch.bool if flags else torch.float32
        return torch.zeros(size, dtype=dtype, device=self._device)

    def float32(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.float()

    def flag(self, flags: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return flags.index_fill_(0, ids, True)

    def add(self, scores: torch.Tensor, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return scores.index_add(0, ids, values)

    def ban(self, scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(0, ids, -torch.inf)

    def where(
        self, condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor | float
    ) -> torch.Tensor:
        return torch.where(condition, a, b)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0, keepdim=True)

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.softmax(0)

    def logsumexp(self, x: torch.Tensor) -> torch.Tensor:
        return x.logsumexp(0)

    def argmax(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.argmax(0, keepdim=True)

    def candidates(self, scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.largest(scores, k)

    def largest(self, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of equal values the first. By a stable sort: topk does not say which of them it takes."""
        values, places = x.sort(descending=True, stable=True)
        return values[:k], places[:k]

    def least_of_top(self, p: torch.Tensor, top_p: float) -> torch.Tensor:
        descending = p.sort(descending=True).values
        # In fixed point, because the order in which a card adds floats varies.
        parts = (descending.double() * _WHOLE).long()
        before = parts.cumsum(0) - parts
        return descending.masked_fill(before >= math.ceil(top_p * _WHOLE), torch.inf).min()

    def categorical(self, scores: torch.Tensor, key: int) -> torch.Tensor:
        """By the Gumbel-max trick: the place of the largest score plus Gumbel noise.

        In float64: in float32 a token with a probability of 1e-8 would never be drawn.
        """
        self._generator.manual_seed(_mixed(key))
        uniform = torch.rand(
            scores.shape, generator=self._generator, dtype=torch.float64, device=scores.device
        )  # below 1, so that its logarithm is not 0
        return (scores - uniform.log_().neg_().log_()).argmax(0, keepdim=True)

    def fetch(self, arrays: Sequence[torch.Tensor]) -> Fetch:
        """In a single copy: joined with float32, ids become float32, exact below 2^24."""
        numbers, sizes = torch.cat([*arrays]), [len(array) for array in arrays]
        if not numbers.is_cuda:
            return lambda: [part.tolist() for part in numbers.split(sizes)]
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(numbers.device))

        def wait() -> list[list[float]]:
            copied.synchronize()
            return [part.tolist() for part in host.split(sizes)]

        return wait


def _mixed(key: int) -> int:
    """The last steps of splitmix64 (Steele, Lea and Flood, 2014).

    Keys are mixed because torch's generator on a CPU uses only 32 bits of its seed.
    """
    z = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31
