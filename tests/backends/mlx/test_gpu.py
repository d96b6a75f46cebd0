"""What only a Mac's GPU can show: the model on Metal beside the same model on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.model import open_model
from gptoss_mlx.backends.mlx.ops.attention_quantized import Quantized, attention_quantized
from gptoss_mlx.models.checkpoint import Checkpoint
from tests.support.comparison import relative_l2

pytestmark = pytest.mark.skipif(not mx.metal.is_available(), reason="needs a GPU with Metal")

IDS = [(7 * i) % 8192 for i in range(300)]


@pytest.fixture
def gpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.gpu))
    yield
    mx.set_default_device(before)


@pytest.fixture
def expected(small_checkpoint: Path) -> NDArray[np.float32]:
    """The logits after each of IDS in float32 on the CPU, which the other tests prove right."""
    model = open_model(Checkpoint.open(small_checkpoint), dtype="float32")
    return model.evaluate(IDS, model.new_state())


def test_float32_on_metal_is_the_cpus(
    small_checkpoint: Path, expected: NDArray[np.float32], gpu: None
) -> None:
    model = open_model(Checkpoint.open(small_checkpoint), dtype="float32")
    assert relative_l2(model.evaluate(IDS, model.new_state()), expected) < 1e-3


def test_bfloat16_on_metal_stays_near(
    small_checkpoint: Path, expected: NDArray[np.float32], gpu: None
) -> None:
    model = open_model(Checkpoint.open(small_checkpoint))
    assert model.lm_head.matrix.weight.dtype == mx.bfloat16
    state = model.new_state()
    model.prefill(IDS[:200], state)
    last = np.array(model.decode([IDS[200:201]], [state])[0].astype(mx.float32))
    assert np.isfinite(last).all()
    assert relative_l2(last, expected[200]) < 0.2


@pytest.mark.parametrize(("held", "tokens"), [(1, 1), (300, 1), (2049, 1), (333, 37), (700, 512)])
def test_attention_over_a_quantized_cache_on_metal_is_the_cpus(held: int, tokens: int) -> None:
    rng = np.random.default_rng(held)
    q = rng.standard_normal((1, 16, tokens, 64), np.float32)
    kv = rng.standard_normal((2, 1, 2, held, 64), np.float32)
    found = []
    for device in (mx.Device(mx.cpu), mx.Device(mx.gpu)):
        with mx.stream(device):
            k, v = (Quantized(*mx.quantize(mx.array(a), group_size=64, bits=8)) for a in kv)
            sinks = mx.arange(16, dtype=mx.float32) / 4
            y = attention_quantized(
                mx.array(q), k, v, scale=0.125, sinks=sinks, scores_bytes=1 << 20
            )
            found.append(np.array(y))
    assert relative_l2(found[1], found[0]) < 1e-3


def test_streamed_experts_on_metal_are_the_resident_ones(small_checkpoint: Path, gpu: None) -> None:
    """Banks are written from the CPU while the GPU computes: the same tokens, the same logits."""
    logits = []
    for slots in (None, 3):
        model = open_model(Checkpoint.open(small_checkpoint), dtype="float32", slots=slots)
        state = model.new_state()
        model.prefill(IDS[:100], state)
        rows = [np.array(model.decode([[id]], [state])[0]) for id in IDS[100:140]]
        logits.append(np.stack(rows))
    assert relative_l2(logits[1], logits[0]) < 1e-5
