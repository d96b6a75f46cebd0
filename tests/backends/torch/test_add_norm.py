"""The residual sum and its norm by the Triton kernel, against float64."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gptoss_mlx.backends.torch import reference  # noqa: E402
from gptoss_mlx.backends.torch.triton import add_norm as op  # noqa: E402

pytestmark = pytest.mark.torch

DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5
ROUNDING = {torch.float32: 2e-7, torch.bfloat16: 2**-8}


def normal(seed: int, *shape: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal(shape, np.float32))


def exact(
    x: torch.Tensor, updates: torch.Tensor | None, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64: the sum, and the norm of the sum once rounded to x's dtype."""
    total = x.double() if updates is None else x.double() + updates.double().sum(1)
    seen = total.to(x.dtype).double()
    normed = seen / (seen.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    return total, normed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("update", DTYPES)
@pytest.mark.parametrize("hidden", [64, 96, 192, 33, 1])
@pytest.mark.parametrize(("tokens", "count"), [(1, 4), (2, 1), (5, 3), (3, 0)])
def test_against_float64(
    tokens: int, count: int, hidden: int, update: torch.dtype, dtype: torch.dtype
) -> None:
    x, weight = normal(0, tokens, hidden).to(dtype), normal(1, hidden).to(dtype)
    updates = normal(2, tokens, count, hidden).to(update) if count else None
    total, normed = op.add_norm(x, updates, weight, EPS)
    assert total.dtype == normed.dtype == dtype
    expected, _ = exact(x, updates, weight)
    torch.testing.assert_close(
        total.double(), expected, rtol=ROUNDING[dtype], atol=count * ROUNDING[torch.float32]
    )
    _, expected = exact(total, None, weight)
    torch.testing.assert_close(normed.double(), expected, rtol=1.5 * ROUNDING[dtype], atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_updates_are_added_in_their_order_before_the_stream(dtype: torch.dtype) -> None:
    # In float32 any other order loses one of the ones.
    x = torch.tensor([[1.0, 2.0]]).to(dtype)
    updates = torch.tensor([[[1e8, 1.0], [-1e8, -1.0], [1.0, 3.0]]])
    total, _ = op.add_norm(x, updates, torch.ones(2).to(dtype), EPS)
    assert total.tolist() == [[2.0, 5.0]]
    many = normal(3, 4, 7, 96) * 10 ** normal(4, 4, 7, 96)
    stream = normal(5, 4, 96).to(dtype)
    total, _ = op.add_norm(stream, many, torch.ones(96).to(dtype), EPS)
    same, _ = reference.add_norm(stream, many, torch.ones(96).to(dtype), EPS)
    assert torch.equal(total, same)


def test_the_norm_is_of_the_rounded_sum() -> None:
    # bfloat16 has no 257: rounded to 256, both numbers are equal and their norms are 1.
    x = torch.tensor([[256.0, 256.0]]).bfloat16()
    updates = torch.tensor([[[0.0, 1.0]]])
    total, normed = op.add_norm(x, updates, torch.ones(2), 0.0)
    assert total.tolist() == [[256.0, 256.0]]
    assert normed.tolist() == [[1.0, 1.0]]


def test_strided_arguments() -> None:
    x, updates, weight = normal(0, 5, 2 * 96), normal(1, 3, 5, 2 * 96), normal(2, 96)
    views = (
        (x[:, :96], updates.transpose(0, 1)[..., :96]),  # updates side by side
        (x[:, ::2], updates.transpose(0, 1)[..., ::2]),  # no two numbers side by side
        (x[:, :96].contiguous(), updates[:1].transpose(0, 1)[..., :96].expand(5, 3, 96)),
    )
    for stream, added in views:
        found = op.add_norm(stream, added, weight, EPS)
        same = op.add_norm(stream.contiguous(), added.contiguous(), weight, EPS)
        assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))


def test_arguments_are_left_as_they_were() -> None:
    x, updates, weight = normal(0, 3, 64), normal(1, 3, 2, 64), normal(2, 64)
    copies = [a.clone() for a in (x, updates, weight)]
    op.add_norm(x, updates, weight, EPS)
    assert all(torch.equal(a, b) for a, b in zip((x, updates, weight), copies, strict=True))


def test_a_row_is_spread_over_whole_warps() -> None:
    for hidden in (1, 33, 512, 513, 2880, 8192, 40000):
        for capability in (80, 90, 120):
            assert op.warps(hidden, capability) in (1, 2, 4, 8, 16)
