"""YaRN's periods against values recorded from transformers, and its limits by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.released import CONFIGS
from gptoss_mlx.spec.rope import magnitude, periods
from tests.support.record_logits import FILE

RELEASED = ModelConfig.from_file(CONFIGS["openai/gpt-oss-20b"])


def _recorded(name: str) -> NDArray[np.float32]:
    with np.load(FILE) as file:
        values: NDArray[np.float32] = file[f"yarn/{name}"]
        return values


def _yarn(**fields: Any) -> ModelConfig:
    assert RELEASED.rope_scaling is not None
    return replace(RELEASED, rope_scaling=replace(RELEASED.rope_scaling, **fields))


@pytest.mark.parametrize("truncate", [False, True])
def test_periods_are_the_inverse_of_transformers_frequencies(truncate: bool) -> None:
    ours = 1 / periods(_yarn(truncate=truncate))
    assert ours.shape == (32,)
    np.testing.assert_allclose(ours, _recorded(f"truncate_{truncate}"), rtol=4e-7)


def test_rounding_the_range_is_another_model() -> None:
    exact, rounded = (periods(_yarn(truncate=t)) for t in (False, True))
    assert np.abs(rounded / exact - 1).max() > 0.1


def test_released_config_does_not_round() -> None:
    np.testing.assert_array_equal(periods(RELEASED), periods(_yarn(truncate=False)))


def test_fast_pairs_are_untouched_and_slow_ones_stretched_by_the_factor() -> None:
    plain = periods(replace(RELEASED, rope_scaling=None))
    np.testing.assert_allclose(plain, [150000 ** (i / 32) for i in range(32)], rtol=1e-12)
    stretched = periods(RELEASED) / plain
    # A pair with at least 32 turns in 4096 tokens is fast, one with less than a turn is slow.
    turns = 4096 / (2 * math.pi * plain)
    np.testing.assert_allclose(stretched[turns >= 32], 1, rtol=1e-12)
    np.testing.assert_allclose(stretched[turns < 1], 32, rtol=1e-12)
    between = stretched[(turns < 32) & (turns >= 1)]
    assert len(between) > 5
    assert (np.diff(between) > 0).all()
    assert between.min() > 1
    assert between.max() < 32


def test_magnitude() -> None:
    assert magnitude(RELEASED) == pytest.approx(float(_recorded("magnitude")), rel=1e-12)
    assert magnitude(RELEASED) == pytest.approx(1.3465735902799727, rel=1e-12)
    assert magnitude(_yarn(factor=1.0)) == 1
    assert magnitude(replace(RELEASED, rope_scaling=None)) == 1


def test_an_empty_correction_range_divides_by_no_zero() -> None:
    # No turns between fast and slow: each pair is one or the other.
    stretched = periods(_yarn(beta_fast=8.0, beta_slow=8.0)) / periods(
        replace(RELEASED, rope_scaling=None)
    )
    turns = 4096 / (2 * math.pi * periods(replace(RELEASED, rope_scaling=None)))
    np.testing.assert_allclose(stretched, np.where(turns >= 8, 1, 32), rtol=1e-9)


@pytest.mark.parametrize("factor", [1.0, 4.0, 32.0])
def test_tokens_per_radian_grow_with_the_pair(factor: float) -> None:
    assert (np.diff(periods(_yarn(factor=factor))) > 0).all()
