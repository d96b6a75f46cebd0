"""Converted folders run: in our runtime as their source does, and in mlx-lm unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convert.conversion import Conversion
from gptoss_mlx.spec.recipe import RECIPES
from tests.support.checkpoints import Shape
from tests.support.comparison import argmax_agreement, fresh, opened, relative_l2
from tests.support.numpy_gpt_oss import NumpyGptOss
from tests.support.released_tensors import read_tensors
from tests.support.shapes import tokens

SHAPE = Shape(3, 128, 96, 6, 2, 4, 2, 32, vocab=512, window=16)
WIDE_120B = Shape(2, 192, 96, experts=128, active=4, heads=4, kv_heads=1, head_dim=48, vocab=512)
"""As many experts as the 120b has."""

LIMIT = 1e-5
IDS = tokens(SHAPE.vocab, 300)


def converted(source: Path, folder: Path, recipe: str) -> Path:
    Conversion.prepare(source, folder, target="mlx", recipe=recipe).run()
    return folder


@pytest.mark.parametrize("shape", [SHAPE, WIDE_120B], ids=["small", "128 experts"])
def test_the_same_logits_from_the_release_and_from_bf16(
    shape: Shape, checkpoint_of: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint_of(shape)
    made = converted(source, tmp_path / "made", "bf16")
    np.testing.assert_array_equal(fresh(opened(made), IDS), fresh(opened(source), IDS))


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_quantized_logits_are_those_of_the_numbers_in_the_folder(
    recipe: str, checkpoint_of: Callable[..., Path], tmp_path: Path
) -> None:
    made = converted(checkpoint_of(SHAPE), tmp_path / "made", recipe)
    ids = IDS[:40]
    assert relative_l2(fresh(opened(made), ids), NumpyGptOss(made).logits(ids)) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.self_attn.o_proj.weight"])
def test_every_bit_less_doubles_the_distance_to_the_release(
    name: str, checkpoint_of: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint_of(SHAPE)
    released = read_tensors(source)[name]
    distances = {
        bits: relative_l2(
            read_tensors(converted(source, tmp_path / str(bits), str(bits)))[name], released
        )
        for bits in (8, 6, 5, 4)
    }
    assert distances[4] < 0.15
    assert 1.7 < distances[4] / distances[5] < 2.4
    assert 1.7 < distances[5] / distances[6] < 2.4
    assert distances[8] < distances[6]


@pytest.mark.oracle
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_mlx_lm_opens_it_unchanged(
    recipe: str, checkpoint_of: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("mlx_lm")
    from tests.support import mlx_lm_oracle

    made = converted(checkpoint_of(SHAPE), tmp_path / "made", recipe)
    ours = fresh(opened(made), IDS)
    theirs = mlx_lm_oracle.logits(mlx_lm_oracle.load(made, exact=True), IDS)
    distance = relative_l2(ours, theirs)
    print(f"mlx-lm on {recipe}: {distance:.1e}")
    assert distance < LIMIT
    assert argmax_agreement(ours, theirs) == 1
