"""The benchmark of generate: it measures, shows a table, and ends with one JSON line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.generate import FIGURES, bytes_a_token, main
from tests.support.checkpoints import Shape

FULL = Shape(
    layers=2,
    hidden=32,
    intermediate=32,
    experts=8,
    active=4,
    heads=2,
    kv_heads=1,
    head_dim=16,
    vocab=201088,
)


@pytest.mark.slow
def test_it_measures_a_checkpoint(checkpoint_of: Callable[..., Path]) -> None:
    options = ["--prompt-tokens", "9", "--decode-tokens", "4", "--runs", "1"]
    result = CliRunner().invoke(main, ["--model", str(checkpoint_of(FULL)), *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert set(report["medians"]["gptoss_mlx"]) == set(FIGURES)
    assert all(value > 0 for value in report["medians"]["gptoss_mlx"].values())
    assert report["cat_s"] > 0
    assert "decode, tok/s" in result.stderr


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--model", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(("dtype", "wide"), [("float32", 4), ("bfloat16", 2)])
def test_bytes_of_a_token_by_hand(
    checkpoint_of: Callable[..., Path], dtype: str, wide: int
) -> None:
    h, q, kv, e, v = 32, 32, 16, 8, 201088
    attention = q * h + 2 * kv * h + h * q + q + 2 * kv + h + 2
    dense = 2 * (attention + 2 * h + e * h + e) + h + v * h
    biases = 2 * 4 * (2 * h + h)
    mxfp4 = 2 * 4 * (2 * h * h + h * h) * 17 // 32
    assert bytes_a_token(checkpoint_of(FULL), dtype) == wide * (dense + biases) + mxfp4
