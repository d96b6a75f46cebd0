"""The generate command on real engines: a random model with the full vocabulary."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gptoss_mlx.generate import main
from tests.root import ROOT
from tests.support.checkpoints import Shape

SHAPE = Shape(
    layers=2,
    hidden=64,
    intermediate=64,
    experts=4,
    active=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=201088,
)


@pytest.fixture(scope="session")
def random_model(checkpoint_of: Callable[..., Path]) -> str:
    return str(checkpoint_of(SHAPE, shard_bytes=1 << 28))


def generate(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def generated(*arguments: str) -> dict[str, Any]:
    result = generate(*arguments, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def test_a_seed_repeats_the_output(random_model: str) -> None:
    ask = ("Hello", "--model", random_model, "--max-tokens", "8")
    first = generated(*ask, "--top-logprobs", "2")
    again = generated(*ask, "--top-logprobs", "2", "--seed", str(first["seed"]))
    assert [first["text"], first["logprobs"]] == [again["text"], again["logprobs"]]
    assert [first["finish_reason"], first["usage"]["completion_tokens"]] == ["length", 8]
    assert [len(token["top"]) for token in first["logprobs"]] == [2] * 8
    assert first["logprobs"][0]["text"] == "<|channel|>"  # the header grammar is on


def test_the_same_text_with_and_without_json(random_model: str) -> None:
    ask = ("Hello", "--model", random_model, "--max-tokens", "6", "--raw", "--temperature", "0")
    assert generate(*ask).stdout.removesuffix("\n") == generated(*ask)["text"].removesuffix("\n")


def test_tools_and_a_response_format_are_understood(random_model: str, tmp_path: Path) -> None:
    file = tmp_path / "conversation.json"
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    file.write_text(
        json.dumps(
            {
                "messages": [{"role": "user", "content": "Add."}],
                "tools": [tool],
                "response_format": {"type": "json_object"},
                "reasoning_effort": "low",
            }
        )
    )
    plain = generated("Add.", "--model", random_model, "--max-tokens", "1")
    whole = generated("--messages", str(file), "--model", random_model, "--max-tokens", "1")
    assert whole["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 20


def test_what_does_not_fit_the_context_is_one_line(random_model: str) -> None:
    result = generate("Hello", "--model", random_model, "--context", "10")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "the context holds 10" in result.stderr


def test_a_token_the_model_lacks_is_one_line(random_model: str) -> None:
    result = generate("Hello", "--model", random_model, "--logit-bias", "201088=1")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "is 201088, but must be from 0 to 201087" in result.stderr


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = generate("Hello", "--model", str(tmp_path / "nowhere"))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "--model tiny" in result.stderr


def offline(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process without any network."""
    cut = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*cut, "true"]).returncode != 0:
        pytest.skip("unshare --net is not permitted here")
    line = [*cut, sys.executable, "-m", "gptoss_mlx.generate", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_it_answers_with_the_network_cut(random_model: str) -> None:
    result = offline("Hello", "--model", random_model, "--max-tokens", "3", "--json", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["usage"]["completion_tokens"] == 3


def test_the_default_model_with_the_network_cut_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    result = offline("Hello")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("error: openai/gpt-oss-20b: ")
    assert "--model tiny" in result.stderr
