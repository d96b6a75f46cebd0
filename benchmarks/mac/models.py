"""Whole models: a random checkpoint of the 20b, and prefill and decode by us and by others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.generate import mlx_lm, ours
from benchmarks.mac.machine import on_gpu
from benchmarks.mac.rows import Absent
from convert import destination
from convert.plan import to_mlx
from convert.sources import open_source
from gptoss_mlx.backends.kernels import VARIABLE
from gptoss_mlx.models.hub import local_folder
from gptoss_mlx.spec.recipe import RECIPES
from tests.support.checkpoints import SHAPES, write_checkpoint


def make(folder: str, recipe: str, shape: str) -> dict[str, Any]:
    """A random checkpoint of a shape, converted; kept if it is there already."""
    made = Path(folder)
    if not made.exists():
        released = made.with_name(f"{made.name}-released")
        if not released.exists():
            write_checkpoint(released, SHAPES[shape])
        source = open_source(released)
        destination.write(source, to_mlx(source, RECIPES[recipe]), made)
        shutil.rmtree(released)
    return {"bytes": sum(path.stat().st_size for path in made.glob("*.safetensors"))}


def generate(model: str, runtime: str, prompt: int, decode: int) -> dict[str, Any]:
    """The figures of benchmarks.generate for one run, by one of plan.py's RUNTIMES."""
    if runtime == "mlx-lm" and find_spec("mlx_lm") is None:
        raise Absent("mlx-lm is not installed")
    if "without" in runtime:
        if not on_gpu():
            raise Absent("MLX computes on the CPU here, without Metal kernels as it is")
        os.environ[VARIABLE] = "reference"
    folder = local_folder(model)
    if folder is None:
        raise Absent(f"{model} is not on this machine")
    measured = mlx_lm if runtime == "mlx-lm" else ours
    figures: dict[str, Any] = measured(time.time(), folder, None, prompt, decode)
    return figures


def llama_bench(gguf: str | None, prompt: int, decode: int, runs: int) -> dict[str, Any]:
    """llama.cpp's own benchmark on a file of the same model, which a person has to bring."""
    program = shutil.which("llama-bench")
    if program is None:
        raise Absent("llama-bench is not installed")
    if gguf is None:
        raise Absent("no --gguf was given")
    sizes = ["-p", str(prompt), "-n", str(decode), "-r", str(runs)]
    command = [program, "-m", gguf, *sizes, "-o", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    tests = json.loads(done.stdout)
    return {
        "prefill_tok_s": _speed(tests, "n_prompt", "n_gen"),
        "decode_tok_s": _speed(tests, "n_gen", "n_prompt"),
        "build": tests[0].get("build_commit"),
    }


def _speed(tests: list[dict[str, Any]], of: str, other: str) -> float:
    """Tokens a second of the test that has only the one."""
    return float(next(test["avg_ts"] for test in tests if test[of] and not test[other]))
