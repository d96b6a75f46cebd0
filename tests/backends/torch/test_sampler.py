"""What only the sampler in PyTorch promises: nothing but `read` waits, and only for its choice.

All else it shares with its twin: tests/backends/test_sampler.py.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from gptoss_mlx.backends.torch.sampler import Operations  # noqa: E402
from gptoss_mlx.harmony import Mask  # noqa: E402
from gptoss_mlx.spec.sampling import Sampling  # noqa: E402
from tests.support.sampler_backends import OneSequence  # noqa: E402

pytestmark = pytest.mark.torch
card = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

ALL = Sampling(
    temperature=0.8,
    top_p=0.9,
    top_k=40,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.3,
    logit_bias={3: 1.5},
    top_logprobs=5,
)


@pytest.mark.parametrize("mask", [None, Mask(allow=(5, 2)), Mask(ban=(0,))])
@pytest.mark.parametrize("options", [Sampling(), Sampling(temperature=0), ALL])
def test_a_choice_is_what_an_embedding_takes(options: Sampling, mask: Mask | None) -> None:
    sampler = OneSequence(Operations(50), options, 1, [3])
    choice = sampler.choose(torch.linspace(-1, 1, 50), 0, mask)
    rows = torch.nn.functional.embedding(choice.token, torch.arange(50.0)[:, None])
    assert rows.tolist() == [[choice.read()[0]]]


def test_logits_are_left_as_they_were() -> None:
    logits = torch.linspace(-1, 1, 50)
    OneSequence(Operations(50), ALL, 1, [3]).choose(logits, 0, Mask(ban=(1, 2)))
    assert torch.equal(logits, torch.linspace(-1, 1, 50))


@card
@pytest.mark.parametrize("options", [Sampling(), Sampling(temperature=0), ALL])
def test_choosing_waits_for_nothing(options: Sampling) -> None:
    logits = torch.randn(201088, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler = OneSequence(Operations(len(logits), "cuda"), options, 1, [3, 9])
        for step, mask in enumerate([None, Mask(ban=(1, 2)), Mask(allow=(5, 2))]):
            sampler.accept(sampler.choose(logits, step, mask))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@card
def test_reading_waits_for_the_choice_but_not_for_what_follows_it() -> None:
    sampler = OneSequence(Operations(1000, "cuda"), Sampling(), 1, [])
    choice = sampler.choose(torch.randn(1000, device="cuda"), 0, None)
    torch.cuda._sleep(2**31)  # cycles: about a second
    choice.read()
    assert not torch.cuda.current_stream().query()
