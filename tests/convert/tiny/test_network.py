"""The training network: its MXFP4 rounding against float64, and its packing against a decoder."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training network needs torch")

from convert.tiny.network import Network, Shape, attention_mask, fake_quantize, mxfp4_round  # noqa: E402
from convert.tiny.pack import mxfp4  # noqa: E402

LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def nearest(block: np.ndarray) -> np.ndarray:
    """The nearest MXFP4 values of 32 numbers, in float64, by trying every level."""
    block = block.astype(np.float64)
    largest = np.abs(block).max()
    scale = 1.0 if largest == 0 else 2.0 ** np.ceil(np.log2(largest / 6))
    distance = np.abs(np.abs(block)[:, None] / scale - LEVELS)
    best = distance.min(1)
    # of two levels equally near, the even code
    chosen = [
        min(np.flatnonzero(d == b), key=lambda c: c % 2)
        for d, b in zip(distance, best, strict=True)
    ]
    return np.sign(block) * LEVELS[chosen] * scale


def blocks() -> np.ndarray:
    rng = np.random.default_rng(3)
    random = rng.standard_normal((60, 32)) * 2.0 ** rng.integers(-30, 30, (60, 1))
    ties = np.tile([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], 4) * np.where(
        np.arange(32) % 3, 1, -1
    )
    return np.vstack([random, ties, ties / 64, np.zeros(32), np.full(32, 3.0)]).astype(np.float32)


def test_fake_quantization_is_the_nearest_value_in_float64() -> None:
    values = blocks()
    expected = np.stack([nearest(block) for block in values])
    assert np.array_equal(mxfp4_round(torch.from_numpy(values)).double().numpy(), expected)


def test_rounding_twice_changes_nothing() -> None:
    once = mxfp4_round(torch.from_numpy(blocks()))
    assert torch.equal(mxfp4_round(once), once)


def test_gradients_pass_fake_quantization_unchanged() -> None:
    weight = torch.from_numpy(blocks()).requires_grad_()
    slope = torch.arange(weight.numel(), dtype=torch.float32).view_as(weight)
    (fake_quantize(weight) * slope).sum().backward()
    assert torch.equal(weight.grad, slope)


def test_packed_codes_decode_to_the_rounded_values() -> None:
    values = blocks().reshape(4, 2, 8, 32).reshape(4, 2, 8 * 32)
    codes, scales = mxfp4(torch.from_numpy(values))
    assert codes.shape == (4, 2, 8, 16)
    assert scales.shape == (4, 2, 8)
    table = np.concatenate([LEVELS, -LEVELS])
    pairs = np.stack([codes & 15, codes >> 4], -1).reshape(4, 2, 8, 32)
    decoded = table[pairs] * 2.0 ** (scales.astype(np.float64)[..., None] - 127)
    expected = mxfp4_round(torch.from_numpy(values)).double().numpy()
    assert np.array_equal(decoded.reshape(4, 2, 256), expected)


def test_an_unknown_token_embeds_to_zero_and_the_rest_of_the_vocabulary_weighs_in() -> None:
    network = Network(Shape(vocabulary=50, full_vocabulary=1050, hidden_size=64))
    hidden, _ = network(torch.tensor([[1, -1, 2]]))
    logits = network.logits(torch.zeros_like(hidden))
    assert torch.isfinite(hidden).all()
    assert logits.shape == (1, 3, 51)
    assert torch.allclose(logits.softmax(-1)[..., -1], torch.tensor(1000 / 1050))


def test_a_sliding_layer_sees_the_window_and_no_more() -> None:
    mask = attention_mask(10, 4)
    assert mask.sum(1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]
    assert mask[9].nonzero().flatten().tolist() == [6, 7, 8, 9]
