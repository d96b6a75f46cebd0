"""The bank of one layer against float64, grouped or not, and with slots in any order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.experts import ExpertBank
from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection
from gptoss_mlx.backends.mlx.ops.routing import Routing
from gptoss_mlx.backends.mlx.weights import Loader
from gptoss_mlx.models.checkpoint import Checkpoint
from tests.backends.mlx.ops.banks import choices, normal
from tests.support.checkpoints import Shape
from tests.support.comparison import worst_row
from tests.support.numpy_gpt_oss import expert
from tests.support.released_tensors import Values, read_tensors

SHAPE = Shape(1, 96, 64, 7, 3, 4, 2, 16, vocab=64)
EXACT = 3e-6  # relative L2 of a token's output in float32


def _bank(folder: Path) -> ExpertBank:
    with Checkpoint.open(folder) as checkpoint, Loader(checkpoint, mx.float32) as loader:
        bank = ExpertBank(checkpoint.config, loader, 0)
        loader.finish()
    return bank


def _exact(folder: Path, x: Values, chosen: NDArray[np.uint32], weights: Values) -> Values:
    prefix = "model.layers.0.mlp."
    tensors = {k.removeprefix(prefix): v for k, v in read_tensors(folder).items()}
    rows = [
        sum(expert(x[t : t + 1], tensors, int(e)) * w for e, w in zip(es, ws, strict=True))
        for t, (es, ws) in enumerate(zip(chosen, weights, strict=True))
    ]
    return np.concatenate(rows)


@pytest.mark.parametrize("tokens", [1, 5, 21, 22, 60])
def test_tokens_visit_their_experts(tokens: int, checkpoint_of: Callable[..., Path]) -> None:
    folder, rng = checkpoint_of(SHAPE), np.random.default_rng(tokens)
    x, exact_x = normal(rng, tokens, SHAPE.hidden)
    weights, exact_weights = normal(rng, tokens, SHAPE.active)
    chosen = choices(rng, tokens, SHAPE.active, SHAPE.experts)
    y = _bank(folder)(x, mx.array(chosen), weights)
    assert y.shape == (tokens, SHAPE.hidden)
    assert y.dtype == mx.float32
    assert worst_row(np.array(y), _exact(folder, exact_x, chosen, exact_weights)) < EXACT


@pytest.mark.parametrize("tokens", [1, 60])
def test_slots_in_another_order_change_nothing(
    tokens: int, checkpoint_of: Callable[..., Path]
) -> None:
    """Experts in other slots, as after a time of loading and evicting; biases stay by expert."""
    folder, rng = checkpoint_of(SHAPE), np.random.default_rng(1)
    x, _ = normal(rng, tokens, SHAPE.hidden)
    weights, _ = normal(rng, tokens, SHAPE.active)
    chosen = mx.array(choices(rng, tokens, SHAPE.active, SHAPE.experts))
    bank = _bank(folder)
    routing = Routing(chosen, chosen, weights)
    resident = bank.down(bank.gate_up(x, routing), routing)
    slot_of = np.array([4, 0, 6, 2, 5, 1, 3], np.uint32)
    expert_in = mx.array(np.argsort(slot_of))
    for projection in ("gate_up_proj", "down_proj"):
        blocks, scales, bias = getattr(bank, projection)
        setattr(bank, projection, Projection(blocks[expert_in], scales[expert_in], bias))
    routing = Routing(mx.array(slot_of)[chosen], chosen, weights)
    shuffled = bank.down(bank.gate_up(x, routing), routing)
    np.testing.assert_array_equal(np.array(shuffled), np.array(resident))


def test_one_expert_for_all_tokens(checkpoint_of: Callable[..., Path]) -> None:
    folder, rng = checkpoint_of(SHAPE), np.random.default_rng(2)
    x, exact_x = normal(rng, 80, SHAPE.hidden)
    chosen = np.full((80, 1), 6, np.uint32)
    y = _bank(folder)(x, mx.array(chosen), mx.ones((80, 1)))
    assert worst_row(np.array(y), _exact(folder, exact_x, chosen, np.ones((80, 1)))) < EXACT
