"""One text for each pipeline: MLX compiles a kernel anew whenever its text has changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from gptoss_mlx.backends.mlx.ops.choice import metal_kernels
from gptoss_mlx.backends.mlx.ops.routing import Routing
from tests.support.checkpoints import Shape
from tests.support.comparison import opened

SHAPE = Shape(2, 64, 32, 12, 4, 4, 2, 32, vocab=256, window=16)


def space(a: mx.array) -> str:
    """Where MLX passes an input (mlx/backend/metal/custom_kernel.cpp)."""
    return "reference" if a.ndim == 0 else "constant" if a.size < 8 else "device"


class Recorder:
    """A factory of kernels that give zeros, and what decides the text of each of their calls."""

    def __init__(self) -> None:
        self.texts: defaultdict[tuple[Any, ...], set[tuple[str, ...]]] = defaultdict(set)

    def __call__(self, *, name: str, **_: Any) -> Callable[..., list[mx.array]]:
        def run(
            *,
            inputs: list[mx.array],
            template: list[tuple[str, Any]],
            output_shapes: list[tuple[int, ...]],
            output_dtypes: list[mx.Dtype],
            **_: Any,
        ) -> list[mx.array]:
            self.texts[name, *map(str, template)].add(tuple(map(space, inputs)))
            outputs = zip(output_shapes, output_dtypes, strict=True)
            return [mx.zeros(shape, dtype) for shape, dtype in outputs]

        return run


@pytest.mark.parametrize("options", [{}, {"slots": 4}, {"kv_bits": 8}], ids=str)
def test_a_pipeline_has_the_same_text_in_every_call(
    checkpoint_of: Callable[..., Path], options: dict[str, Any]
) -> None:
    recorder = Recorder()
    kernels = metal_kernels(recorder)
    model = opened(checkpoint_of(SHAPE), kernels=kernels, rows=8, chunk=40, **options)
    states = [model.new_state() for _ in range(8)]
    for number, state in enumerate(states):
        model.prefill([number] * (1, 2, 3, 5, 8, 9, 20, 40)[number], state)
    for rows in (1, 2, 3, 5, 8, 1):
        mx.eval(model.decode([[7]] * rows, states[:rows]))
    _visits(model)
    assert recorder.texts
    several = {key: texts for key, texts in recorder.texts.items() if len(texts) > 1}
    assert not several


def _visits(model: Any) -> None:
    """Any number of pairs in a wave: zeros for router logits would always choose the same."""
    moe = model.blocks[0].moe
    bank = getattr(moe.experts, "bank", moe.experts)
    for pairs in range(1, 12):
        slots, x = mx.zeros((pairs, 1), mx.uint32), mx.zeros((pairs, SHAPE.hidden))
        for grouped in (False, True):
            routing = Routing(slots, slots, mx.ones((pairs, 1)), grouped)
            halves = bank.gate_up(x, routing)
            if grouped:
                bank.down(halves, routing)
