"""The benchmark of the converter: it measures ours and cp, and ends with one JSON line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from benchmarks.convert import main
from convert.plan import to_mlx
from convert.sources import open_source
from gptoss_mlx.spec.recipe import RECIPES
from tests.support.checkpoints import Shape

SHAPE = Shape(2, 128, 64, 4, 2, 4, 2, 32, vocab=256)


def test_it_measures_a_conversion(checkpoint_of: Callable[..., Path], tmp_path: Path) -> None:
    source, work = checkpoint_of(SHAPE), tmp_path / "work"
    result = CliRunner().invoke(main, ["--model", str(source), "--work", str(work)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert set(report["medians"]) == {"gptoss_mlx", "cp"}
    assert all(value > 0 for figures in report["medians"].values() for value in figures.values())
    assert report["result_bytes"] == to_mlx(open_source(source), RECIPES["8"]).nbytes
    assert list(work.iterdir()) == [], "results are removed"
