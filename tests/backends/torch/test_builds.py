"""Every Triton kernel compiles for every card it is meant for; what does not is named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from gptoss_mlx.backends.torch.triton import linear
from gptoss_mlx.errors import KernelError
from tests.root import ROOT
from tests.support import compiled, triton_builds

pytestmark = pytest.mark.torch

WORKERS = str(max(os.cpu_count() or 1, 2))
PLANTED = """
import triton
import triton.language as tl

from tests.support.compiled import Build

@triton.jit
def total(x, out, steps, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    y = tl.load(x + at)
    for i in range(steps):
        y += tl.load(x + y.to(tl.int32))
    tl.store(out + at, y)

@triton.jit
def product(x, out, steps, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    sum = tl.zeros((SIZE, SIZE), tl.float32)
    for i in range(steps):
        y = tl.load(x + at + i * SIZE * SIZE)
        sum = tl.dot(y, y, sum)
    tl.store(out + at, sum)

@triton.jit
def mistaken(x, out, steps, SIZE: tl.constexpr):
    tl.store(out, x + nothing)

def builds(capability):
    types = {"x": "*bf16", "out": "*fp32", "steps": "i32", "SIZE": "constexpr"}
    pointers = ("x", "out")
    for name, kernel, size, options in (
        ("fine", total, 64, {"num_warps": 1}),
        ("fine again", total, 64, {"num_warps": 1}),
        ("spilling", total, 2048, {"num_warps": 1, "maxnreg": 32}),
        ("too large", product, 64, {"num_warps": 4, "num_stages": 16}),
        ("mistaken", mistaken, 64, {}),
    ):
        yield Build(name, kernel, types, {"SIZE": size}, pointers, options)

BUILDS = {"planted": builds}
"""


def built(*arguments: str, path: Path = ROOT) -> tuple[int, str, list[dict[str, Any]]]:
    """The command's exit status, its output, and the rows of its last line."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{path}"}
    command = [sys.executable, "-m", "benchmarks.cuda.builds", "--workers", WORKERS, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert run.stdout, run.stderr
    return run.returncode, run.stdout, json.loads(run.stdout.splitlines()[-1])["builds"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute on two idle cores
def test_every_kernel_compiles_for_the_oldest_and_the_newest_card() -> None:
    """Those between have as much shared memory as one of them, or more; the command takes all."""
    ends = {80: "8.0", 120: "12.0"}
    asked = [part for end in ends.values() for part in ("--capability", end)]
    status, output, rows = built("--few", *asked)
    assert status == 0, output[-5000:]
    assert {row["capability"] for row in rows} == set(ends)
    assert all(row["registers"] > 0 == row["spilled"] for row in rows)


def test_what_a_card_cannot_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    arguments = ("--lists", "planted", "--capability", "8.6")
    status, output, rows = built(*arguments, path=tmp_path)
    assert status == 1
    assert [row["name"] for row in rows if not row["problems"]] == ["fine"]
    spilling, large, mistaken = output.splitlines()[-4:-1]
    assert re.fullmatch(r"spilling, 8\.6: spills \d+ bytes a thread", spilling)
    assert re.fullmatch(r"too large, 8\.6: needs \d+ bytes of .*; a block has 101376", large)
    assert re.fullmatch(r"mistaken, 8\.6: does not compile: .*nothing is not defined.*", mistaken)


def test_no_kernels_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("BUILDS = {}")
    status, output, rows = built("--lists", "empty", path=tmp_path)
    assert (status, rows) == (1, [])
    assert "empty has no kernels" in output


def test_nothing_is_compiled_where_kernels_are_interpreted() -> None:
    one = next(triton_builds.linear(90))
    with pytest.raises(KernelError, match="in a process with TRITON_INTERPRET"):
        compiled.compile(one, 90)


@pytest.mark.parametrize(
    ("registers", "threads", "why"),
    [(255, 256, None), (256, 128, "a thread of 128 has 255"), (168, 512, "of 512 has 128")],
)
def test_registers_are_those_of_a_block(registers: int, threads: int, why: str | None) -> None:
    problems = list(compiled.Compiled("k", 90, threads, registers, 0, 0, b"", 0.0).problems())
    assert [why is not None and why in problem for problem in problems] == [True] * bool(why)


@pytest.mark.parametrize("capability", compiled.CAPABILITIES)
def test_what_is_launched_was_listed(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a linear layer of each kind, the constants and options are those of some build."""
    launched: list[dict[str, Any]] = []

    class Kernel:
        def __getitem__(self, grid: object) -> Any:
            return lambda *arguments, **named: launched.append(named)

    listed = [{**one.constants, **one.options} for one in triton_builds.linear(capability)]
    monkeypatch.setattr(linear, "_few", Kernel())
    monkeypatch.setattr(linear, "capability_of", lambda device: capability)
    half, full = torch.bfloat16, torch.float32
    for tokens in (1, 7, 8, 9, 32):
        x = torch.zeros(tokens, 128, dtype=half)
        for rows, wanted in ((32, full), (128, full), (2880, half), (5120, half), (201088, full)):
            bias = None if rows == 201088 else x[0, :1].expand(rows)
            weight = x[0, :1].expand(rows, 128)
            linear.linear(x, linear.Matrix(weight), bias, wanted)
            if rows > 128:
                scales = x[0, :1].expand(rows, 2)
                matrix = linear.Matrix(weight.to(torch.uint8), scales, scales)
                linear.linear(x, matrix, bias, wanted)
    assert len(launched) == 5 * 8
    assert [one for one in launched if one not in listed] == []
