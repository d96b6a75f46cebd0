"""Which kernels are used where, and what becomes of one that fails on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from gptoss_mlx.errors import KernelError
from gptoss_mlx.kernels.choice import (
    MODULES,
    Kernels,
    choose_kernels,
    disagreement,
    implementations,
)


def wrong(**asked: Any) -> Callable[..., list[mx.array]]:
    """A factory of kernels that compile and give zeros."""
    return lambda output_shapes, output_dtypes, **_: [
        mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
    ]


def broken(**asked: Any) -> Callable[..., list[mx.array]]:
    """A factory of kernels that do not compile, as MLX tells it."""

    def run(**_: Any) -> list[mx.array]:
        raise RuntimeError("[metal::Device] Unable to build metal library from source\nerror: 1:2")

    return run


def test_a_cpu_has_references_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTOSS_KERNELS", raising=False)
    assert choose_kernels(mx.float32) == Kernels()
    assert set(implementations(Kernels()).values()) == {"reference"}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_kernels_that_give_something_else_are_left_out(dtype: mx.Dtype) -> None:
    kernels = choose_kernels(dtype, wish="", factory=wrong)
    assert set(kernels.left_out) == set(MODULES)
    for name, why in implementations(kernels).items():
        assert "differs from its reference by" in why, name
        assert getattr(kernels, name) is getattr(Kernels(), name)


def test_kernels_that_do_not_compile_are_left_out_with_the_reason_in_one_line() -> None:
    kernels = choose_kernels(mx.float32, wish="", factory=broken)
    assert set(kernels.left_out) == set(MODULES)
    assert all(
        why == "[metal::Device] Unable to build metal library from source error: 1:2"
        for why in kernels.left_out.values()
    )


@pytest.mark.parametrize("factory", [wrong, broken])
def test_insisting_on_metal_fails_rather_than_fall_back(factory: Any) -> None:
    with pytest.raises(KernelError, match=r"^the Metal kernel quantized_matvec cannot be used: "):
        choose_kernels(mx.float32, wish="metal", factory=factory)


def test_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_KERNELS", "reference")
    assert choose_kernels(mx.float32, factory=broken) == Kernels()
    monkeypatch.setenv("GPTOSS_KERNELS", "metal")
    with pytest.raises(KernelError, match="MLX computes on the CPU here"):
        choose_kernels(mx.float32)
    monkeypatch.setenv("GPTOSS_KERNELS", "cuda")
    with pytest.raises(KernelError, match='GPTOSS_KERNELS is "cuda"; it may be "metal" or'):
        choose_kernels(mx.float32)


@pytest.mark.parametrize(
    ("found", "differs"),
    [
        (mx.array([3.0, 4.0]), 0.0),
        (mx.array([3.0, 4.5]), 0.1),
        (mx.array([3.0, float("nan")]), float("inf")),
        (mx.array([3.0, 4.0, 5.0]), float("inf")),
        (mx.array([3.0, 4.0]).astype(mx.bfloat16), 0.0),
        (mx.array([3, 4]), float("inf")),
    ],
)
def test_how_far_two_outputs_are_apart(found: mx.array, differs: float) -> None:
    assert disagreement([found], [mx.array([3.0, 4.0])]) == pytest.approx(differs)


def test_whole_numbers_must_be_the_same() -> None:
    ids = mx.array([3, 4], mx.uint32)
    assert disagreement([ids], [mx.array([3, 4], mx.uint32)]) == 0
    assert disagreement([ids], [mx.array([4, 3], mx.uint32)]) == float("inf")
