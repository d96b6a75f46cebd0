"""When a sampled token is waited for, where its row is read from the file: the step is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.model import Transformer
from gptoss_mlx.backends.mlx.ops import matrix
from gptoss_mlx.backends.mlx.ops.choice import MODULES, Kernels
from tests.support.checkpoints import Shape
from tests.support.comparison import opened

SHAPE = Shape(2, 64, 32, 4, 2, 4, 2, 32, 256, window=16)
PROMPT = list(range(3, 30))


class Token:
    """A token on its way; to see its id is to wait for it."""

    def __init__(self, id: int, log: list[str]) -> None:
        self.id, self.log = id, log

    def __len__(self) -> int:
        return 1

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        self.log.append("token")
        return np.array([self.id])


def logged(log: list[str]) -> Kernels:
    """The references, as lazy as MLX's own kernels; each call is noted."""
    plain = Kernels()
    assert {f.name for f in fields(plain)} >= set(MODULES)

    def noted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            log.append(name)
            return getattr(plain, name)(*arguments, **options)

        return call

    operations: dict[str, Any] = {name: noted(name) for name in MODULES}
    return Kernels(**operations, lazy=True)


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU in float32 the model's matmul is numpy's, which computes at once."""
    monkeypatch.setattr(matrix, "matmul", lambda x, weight: x @ weight.T)


def after(model: Transformer, token: Any) -> NDArray[np.float32]:
    """The logits after the prompt and a token."""
    state = model.new_state()
    model.prefill(PROMPT, state)
    return np.array(model.decode([token], [state])[0])


@pytest.mark.parametrize("slots", [None, 2])
def test_a_steps_row_is_read_when_all_that_does_not_need_it_is_built(
    checkpoint_of: Callable[..., Path], lazy: None, slots: int | None
) -> None:
    log: list[str] = []
    options: dict[str, Any] = {"dtype": "bfloat16", "slots": slots}
    model = opened(checkpoint_of(SHAPE), kernels=logged(log), **options)
    state = model.new_state()
    model.prefill(PROMPT, state)
    log.clear()
    mx.eval(model.decode([Token(7, log)], [state])[0])  # type: ignore[arg-type]
    attention = ["decode_qkv", "decode_attention", "quantized_matvec"]
    assert log.count("token") == 1
    before = log[: log.index("token")]
    if slots is None:
        experts = ["decode_router", "router_topk", "moe_gate_up", "moe_down"]
        assert before == 2 * [*attention, *experts]
        assert log[len(before) :] == ["token", "quantized_matvec"]
    else:  # the router's choice is waited for anyway
        assert before == attention
        assert log[len(before) + 1] == "decode_router"


@pytest.mark.parametrize("slots", [None, 2])
@pytest.mark.parametrize("embedding", ["file", "resident"])
def test_the_logits_are_those_of_a_row_read_at_once(
    checkpoint_of: Callable[..., Path], lazy: None, slots: int | None, embedding: str
) -> None:
    options: dict[str, Any] = {"dtype": "bfloat16", "slots": slots}
    folder = checkpoint_of(SHAPE)
    late = opened(folder, kernels=logged([]), embedding=embedding, rows=2, **options)
    atonce = opened(folder, **options)
    expected = after(atonce, [7])
    for token in ([7], mx.array([7], mx.uint32)):
        np.testing.assert_allclose(after(late, token), expected, rtol=2e-2, atol=2e-2)
    several = late.new_state(), late.new_state()
    for state in several:
        late.prefill(PROMPT, state)
    rows = late.decode([[7], [9]], several)
    np.testing.assert_array_equal(np.array(rows[0]), after(late, [7]))
    np.testing.assert_array_equal(np.array(rows[1]), after(late, [9]))
