"""Options of the generate command whose values are bad."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import gptoss_mlx
from gptoss_mlx.generate import main


@pytest.mark.parametrize(
    "arguments",
    [
        "--temperature -1",
        "--temperature nan",
        "--top-p 2",
        "--top-k -1",
        "--min-p 1.5",
        "--repetition-penalty 0",
        "--presence-penalty 3",
        "--frequency-penalty x",
        "--logit-bias 7=1000",
        "--seed -1",
        "--top-logprobs 99",
        "--max-tokens 0",
        "-n x",
        "--max-time 0",
        "--max-time inf",
        "--memory 10",
        f"--memory {'9' * 6000}",
        "--context 0",
        f"--context {'9' * 6000}",
        "--kv-bits 7",
        "--cache -1",
        "--cache x",
        "--cache-disk 0",
        "--cache-dir pyproject.toml",
        "--reasoning-budget -1",
        "--grammar x --regex y",
        "--regex y --no-constrain",
        "--raw --tool-choice none",
        "--raw --reasoning-budget 3",
        "--dtype float16",
        "--embedding disk",
        "--backend tpu",
        "--device cuda:x",
        f"--seed {'9' * 6000}",
    ],
)
def test_a_bad_value_of_any_option_is_usage_before_loading(
    arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(gptoss_mlx, "load")
    result = CliRunner().invoke(main, ["hi", *arguments.split()])
    assert (result.exit_code, result.stdout) == (2, "")
    assert max(map(len, result.stderr.splitlines())) <= 300
