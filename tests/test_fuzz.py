"""A part of `tests.fuzz`, the same every time, in a process of its own: a library may crash it."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest

from tests.fuzz.mutate import damaged_bytes, damaged_json, damaged_safetensors
from tests.root import ROOT

CASES = 25  # of each kind


def test_no_damaged_input_ends_in_more_than_one_line() -> None:
    """Refused or taken, in 5 seconds of computing, 512 MiB and 300 characters."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--count", str(CASES)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert f"{CASES * 22} cases, 0 failures" in run.stdout


@pytest.mark.parametrize("damage", [damaged_bytes, damaged_json, damaged_safetensors])
def test_damage_is_the_same_for_the_same_seed_and_differs_otherwise(damage: object) -> None:
    assert callable(damage)
    data = b'{"a": [1, 2, {"b": "text"}], "c": null}'
    if damage is damaged_safetensors:
        data = len(data).to_bytes(8, "little") + data
    made = [damage(Random(f"{i}"), data) for i in range(200)]
    assert made == [damage(Random(f"{i}"), data) for i in range(200)]
    assert len(set(made)) > 100
