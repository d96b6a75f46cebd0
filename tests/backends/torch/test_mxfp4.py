"""A bank's MXFP4: what a file holds in another order, and the numbers that OCP's table gives."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.backends.torch import mxfp4
from tests.backends.torch import ptx

pytestmark = pytest.mark.torch

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def random_bytes(*shape: int, seed: int = 0, high: int = 256) -> torch.Tensor:
    make = torch.Generator().manual_seed(seed)
    return torch.randint(high, shape, generator=make, dtype=torch.uint8)


def numbers(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """A file's blocks and scales in float64, one number at a time by the standard's table."""
    table = torch.tensor(E2M1, dtype=torch.float64)
    codes = torch.stack((blocks % 16, blocks // 16), dim=-1).flatten(-2).int()
    powers = torch.pow(2.0, scales.double() - 127).repeat_interleave(32, -1)
    return table[codes] * powers


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    slots=st.integers(1, 3), rows=st.integers(1, 4), groups=st.integers(1, 5), seed=st.integers(0)
)
def test_a_bank_holds_what_the_file_does_in_the_same_bytes(
    slots: int, rows: int, groups: int, seed: int
) -> None:
    blocks = random_bytes(slots, 16 * rows, 16 * groups, seed=seed % 2**31)
    scales = random_bytes(slots, 16 * rows, groups, seed=seed % 2**31 + 1)
    packed, turned = mxfp4.pack(blocks, scales)
    assert (packed.shape, turned.shape) == (blocks.shape, scales.shape)
    assert (packed.dtype, turned.dtype) == (torch.uint8, torch.uint8)
    again = mxfp4.unpack(packed, turned)
    assert torch.equal(again[0], blocks)
    assert torch.equal(again[1], scales)


def test_every_code_times_every_scale_is_the_standards() -> None:
    """All pairs of codes, under all scales but NaN."""
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 256).repeat(256, 1)
    scales = torch.arange(256, dtype=torch.uint8).clamp(max=254).reshape(256, 1).repeat(1, 16)
    expected = numbers(blocks, scales)
    fits = expected.abs() <= torch.finfo(torch.float32).max
    got = mxfp4.dequantize(*mxfp4.pack(blocks, scales)).double()
    assert torch.equal(got[fits], expected[fits])
    assert got[~fits].isinf().all()
    assert torch.equal(got.signbit(), expected.signbit())


def test_experts_are_apart() -> None:
    blocks, scales = random_bytes(3, 32, 48), random_bytes(3, 32, 3, high=200)
    whole = mxfp4.dequantize(*mxfp4.pack(blocks, scales))
    for slot in range(3):
        one = mxfp4.dequantize(*mxfp4.pack(blocks[slot], scales[slot]))
        assert torch.equal(whole[slot], one)


def test_the_instructions_for_a_card_give_every_code_under_every_scale_they_promise() -> None:
    """All 65,536 low halves of a word, each with some high half, in turn with the scales."""
    pytest.importorskip("triton")
    from gptoss_mlx.backends.torch.triton import experts

    low = np.arange(1 << 16, dtype=np.uint32)
    for factor in (1, 40503):  # odd: other pairs of halves
        words = low | (low * np.uint32(factor) % np.uint32(1 << 16)) << np.uint32(16)
        outputs = len(words) // 4
        promised = mxfp4.MOST_SCALE - mxfp4.LEAST_SCALE + 1
        scales = (np.arange(outputs) % promised + mxfp4.LEAST_SCALE).astype(np.uint32)
        multipliers = (scales * np.uint32(0x00800080) + np.uint32(experts._OFFSET.value)).repeat(4)
        quarters = ptx.run(experts.PTX.value, [words, multipliers], 4)
        held = np.stack([quarter.reshape(-1, 4) for quarter in quarters], axis=1)
        values = ptx.bfloat16(held).reshape(outputs, 32) * experts._UNDO.value

        # One group: scales lie in the order of rows that `pack` gives them.
        _, turned = mxfp4.pack(
            torch.zeros(outputs, 16, dtype=torch.uint8),
            torch.from_numpy(scales.astype(np.uint8))[:, None],
        )
        blocks = torch.from_numpy(words.view(np.uint8)).reshape(outputs, 16)
        assert torch.equal(values, mxfp4.dequantize(blocks, turned).double())
