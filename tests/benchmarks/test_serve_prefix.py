"""The benchmark of turns: it counts what is read, and ends with one JSON line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from benchmarks.serve.prefix import main
from tests.benchmarks.test_generate import FULL


def test_it_counts_what_each_turn_reads(checkpoint_of: Callable[..., Path]) -> None:
    options = ["--turns", "1", "--tools", "1", "--words", "3"]
    result = CliRunner().invoke(main, ["--model", str(checkpoint_of(FULL)), *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    found = report["costs"]["gptoss_mlx"]
    assert len(found["read"]) == len(found["first_token_s"]) == report["requests"] >= 2
    assert found["read"][0] == report["new"][0] > report["tools_tokens"] > 100
    assert 0 <= found["read_again_at_most"] <= 64
    assert "of them again" in result.stderr


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--model", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
