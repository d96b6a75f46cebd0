"""What only a card can show; the checks are those of on_card.py.

They run in one process of their own, because here Triton's kernels are interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.torch

from tests.backends.torch.on_card import CHECKS  # noqa: E402
from tests.conftest import SMALL  # noqa: E402
from tests.root import ROOT  # noqa: E402

needs_a_card = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA card that PyTorch can use"
)
Results = dict[str, str | None]


def results(device: str, folder: Path, *names: str) -> Results:
    """Of every check, or those named: None or what went wrong."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"  # small work, on machines that have other work
    else:
        environment["GPTOSS_KERNELS"] = "triton"
    run = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.backends.torch.on_card",
            device,
            str(folder),
            *names,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    found: Results = {line["check"]: line["error"] for line in lines}
    ended = f"not reached: the process ended with {run.returncode}\n{run.stderr[-2000:]}"
    return {name: found.get(name, ended) for name in names or CHECKS}


@pytest.fixture(scope="module")
def on_card(checkpoint_of: Callable[..., Path]) -> Results:
    return results("cuda", checkpoint_of(SMALL))


@needs_a_card
@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_card(name: str, on_card: Results) -> None:
    assert on_card[name] is None, on_card[name]


@pytest.mark.parametrize(
    "names",
    [
        ("logits float32", "streamed experts"),
        pytest.param(("answer float32", "cancelled", "prefix", "together"), marks=pytest.mark.slow),
    ],
    ids=["model", "engine"],
)
def test_the_checks_hold_on_a_cpu(names: tuple[str, ...], small_checkpoint: Path) -> None:
    """Where the references compute: so the checks themselves are right."""
    assert results("cpu", small_checkpoint, *names) == dict.fromkeys(names)


def test_a_check_that_fails_says_what_is_wrong(small_checkpoint: Path) -> None:
    found = results("cpu", small_checkpoint, "nothing is left out")
    assert "instead of []" in str(found["nothing is left out"])
