"""What a plan says PyTorch holds is what an opened model holds, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.plan import torch_buffers
from gptoss_mlx.plan.memory import MOST_ROWS, make_plan
from gptoss_mlx.settings import Settings
from gptoss_mlx.system.machine import Machine
from tests.plan.test_memory import EIGHT, MIXED
from tests.support.checkpoints import Shape
from tests.support.quantized import write_quantized
from tests.support.shapes import CASES

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CPU = Machine("a CPU", None, None, False, "torch")
STAYING = ("weights", "expert biases", "embedding", "experts", "keys and values", "sliding layers")
UNLIKE = {**EIGHT, "model.layers.1.self_attn.v_proj": {**EIGHT, "bits": 4}}
"""Queries and keys of a layer in 8 bits, and values in others: all three are widened."""


def tensors(thing: Any, seen: set[int]) -> dict[int, int]:
    """Bytes of the memory under every tensor that a model reaches, by address."""
    if id(thing) in seen:
        return {}
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        storage = thing.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    if isinstance(thing, dict):
        parts = list(thing.values())
    elif isinstance(thing, list | tuple):
        parts = list(thing)
    elif type(thing).__module__.startswith("gptoss_mlx.backends.torch"):
        parts = list(vars(thing).values())
    else:
        return {}
    return {at: size for part in parts for at, size in tensors(part, seen).items()}


def held(folder: Path, slots: int | None = None, **settings: Any) -> int:
    from gptoss_mlx.backends.torch.model import open_model

    model = open_model(Checkpoint.open(folder), slots=slots, **settings)
    return sum(tensors(model, set()).values())


def planned(folder: Path, slots: int | None = None, rows: int = 1, **settings: Any) -> int:
    checkpoint = Checkpoint.open(folder)
    plan = make_plan(checkpoint.config, CPU, Settings(parallel=rows, **settings))
    experts = plan.of("experts")
    missing = 0 if slots is None else experts - experts * slots // plan.experts
    return plan.of(*STAYING) - missing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "quantization", [None, EIGHT, MIXED, UNLIKE], ids=["bf16", "eight", "mixed", "unlike"]
)
def test_weights_are_byte_for_byte_what_pytorch_holds(
    small_checkpoint: Path, tmp_path: Path, dtype: str, quantization: dict[str, Any] | None
) -> None:
    folder = small_checkpoint
    if quantization is not None:
        folder = write_quantized(small_checkpoint, tmp_path / "quantized", quantization)
    settings: dict[str, Any] = {"dtype": dtype, "context": 256}
    assert held(folder, **settings) == planned(folder, **settings)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["one_kv_head", "odd_window", "wide"])
def test_keys_and_values_of_every_row(
    name: str, rows: int, checkpoint_of: Callable[..., Path]
) -> None:
    folder = checkpoint_of(CASES[name].shape, CASES[name].seed)
    settings: dict[str, Any] = {"rows": rows, "context": 512, "dtype": "float32"}
    assert held(folder, **settings) == planned(folder, **settings)


def test_fewer_slots_hold_fewer_experts(checkpoint_of: Callable[..., Path]) -> None:
    folder = checkpoint_of(Shape(3, 64, 96, 8, 2, 4, 2, 16, vocab=8192))
    settings: dict[str, Any] = {"slots": 3, "context": 256, "dtype": "float32"}
    assert held(folder, **settings) == planned(folder, **settings)


def test_what_is_planned_for_follows_the_code_that_takes_it() -> None:
    from gptoss_mlx.backends import loading
    from gptoss_mlx.backends.torch import experts, graph, model, quantized, streaming, weights

    assert experts.PACKED == torch_buffers.PACKED
    assert streaming.STAGED == torch_buffers.STAGED
    assert quantized.PIECE == torch_buffers.WIDENED
    assert loading.THREADS * weights.PIECE <= torch_buffers.STAGING
    assert model.MOST_ROWS == MOST_ROWS
    assert torch_buffers.buckets(MOST_ROWS) == graph.BUCKETS
    assert {torch_buffers.buckets(n)[-1] for n in range(1, 33)} == set(graph.BUCKETS)
    assert all(torch_buffers.buckets(n)[-1] == graph.bucket(n) for n in range(1, 33))
    pytest.importorskip("triton")
    from gptoss_mlx.backends.torch.triton import decode_attention, linear

    assert linear.SCRATCH == torch_buffers.SLICE
    for processors in (82, 108, 128, 132, 148, 188):
        for rows in (1, 4, 32):
            for context in (4096, 131072):
                _, splits = decode_attention.split(context, rows * 8, processors, 64)
                assert splits <= torch_buffers.SPLITS


SHAPES = """
import torch
from gptoss_mlx.system.heap import keep_few_shapes, return_freed

def resident():
    with open('/proc/self/status') as lines:
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith('VmRSS'))

return_freed()
keep_few_shapes()
torch.set_num_threads(1)
w = torch.ones(512, 256, dtype=torch.bfloat16)
x = torch.ones(400, 256, dtype=torch.bfloat16)
torch.nn.functional.linear(x, w)
before = resident()
for n in range(1, 400):
    torch.nn.functional.linear(x[:n], w)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_shapes_that_were_multiplied_are_forgotten() -> None:
    run = subprocess.run([sys.executable, "-c", SHAPES], check=True, capture_output=True, text=True)
    assert int(run.stdout) << 20 < torch_buffers.CPU_SHAPES
