"""Smoke tests of what several callers get: tokens are counted, and nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest


def run(module: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.serve.{module}", "--backend", "mlx", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_streams_are_counted_together_and_a_long_prompt_waits_its_turn() -> None:
    found = run("parallel", "--streams", "1,3", "--tokens", "6", "--rounds", "1", "--long", "700")
    assert set(found["ours"]) == {"1", "3"}
    assert found["ours"]["1"]["ratio"] == 1.0
    assert all(row["tok_s"] > 0 for row in found["ours"].values())
    assert found["waits"]["most_chunks"] == 1


def test_the_models_steps_alone() -> None:
    found = run("parallel", "--streams", "1,2", "--tokens", "4", "--rounds", "1", "--bare")
    assert all(row["tok_s"] > 0 for row in found["ours"].values())


@pytest.mark.slow
def test_nothing_is_left_of_short_requests() -> None:
    found = run("soak", "--requests", "40", "--callers", "3")
    assert found["requests"] >= 40
    assert found["cancelled"] > 0
    assert (found["threads_left"], found["files_left"], found["states_left"]) == (0, 0, 0)
