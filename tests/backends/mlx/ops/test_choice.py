"""Which kernels are used where, and what becomes of one that fails on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.ops import choice
from gptoss_mlx.backends.mlx.ops.choice import MODULES, Kernels, choose_kernels, implementations
from gptoss_mlx.backends.mlx.ops.metal import Pipeline, mlx_version, require_mlx
from gptoss_mlx.backends.mlx.ops.trial import disagreement
from gptoss_mlx.backends.mlx.ops.verdicts import Verdict, Verdicts, this_machine
from gptoss_mlx.errors import KernelError
from tests.support.checkpoints import Shape
from tests.support.comparison import opened

KERNELS = {
    "quantized_matvec",
    "decode_qkv",
    "decode_attention",
    "decode_attention_merge",
    "decode_router",
    "router_topk",
    "moe_decode_gate_up",
    "moe_prefill_gate_up",
    "moe_decode_down",
    "moe_decode_down_each",
    "moe_decode_down_sum",
    "moe_prefill_down",
}


def nowhere() -> Verdicts:
    return Verdicts({}, None)


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


def calls(dtype: mx.Dtype) -> Iterator[tuple[str, Any]]:
    for name, module in MODULES.items():
        for arguments in module.examples(dtype):
            yield name, arguments


def test_a_cpu_has_references_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTOSS_KERNELS", raising=False)
    assert choose_kernels() == Kernels()
    assert set(implementations(Kernels()).values()) == {"reference"}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (wrong, "it differs from its reference by"),
        (broken, "[metal::Device] Unable to build metal library from source error: 1:2"),
    ],
)
def test_kernels_that_fail_are_left_out_with_the_reason_in_one_line(
    dtype: mx.Dtype, factory: Any, why: str
) -> None:
    kernels = choose_kernels(policy="", factory=factory, verdicts=nowhere())
    for name, arguments in calls(dtype):
        found = getattr(kernels, name)(*arguments)
        expected = getattr(Kernels(), name)(*arguments)
        several = ([a] if isinstance(a, mx.array) else a for a in (found, expected))
        assert all(mx.array_equal(a, b) for a, b in zip(*several, strict=True)), name
    assert set(kernels.rejected) == KERNELS
    assert all(why in reason for reason in kernels.rejected.values())
    assert all(why in shown for shown in implementations(kernels).values())
    assert not kernels.pages


@pytest.mark.parametrize("factory", [wrong, broken])
@pytest.mark.parametrize("slots", [None, 4])
def test_a_model_whose_kernels_all_fail_is_the_one_without_any(
    checkpoint_of: Callable[..., Path], factory: Any, slots: int | None
) -> None:
    folder = checkpoint_of(Shape(2, 64, 32, 8, 4, 4, 2, 32, 256, window=16))
    kernels = choose_kernels(policy="", factory=factory, verdicts=nowhere())
    model, plain = (opened(folder, slots=slots, rows=2, kernels=k) for k in (kernels, Kernels()))
    assert set(kernels.rejected) == KERNELS
    states = model.new_state(), plain.new_state()
    for ids in (list(range(1, 30)), [3, 4], [5], [6]):
        rows = [m.evaluate(ids, s) for m, s in zip((model, plain), states, strict=True)]
        np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("factory", [wrong, broken])
def test_insisting_on_metal_fails_rather_than_fall_back(factory: Any) -> None:
    kernels = choose_kernels(policy="metal", factory=factory, verdicts=nowhere())
    name, arguments = next(calls(mx.float32))
    with pytest.raises(KernelError, match=r"^the Metal kernel quantized_matvec cannot be used: "):
        getattr(kernels, name)(*arguments)


def test_what_is_shown_of_a_device_is_what_small_calls_and_earlier_starts_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path))
    monkeypatch.setattr(
        choice, "choose_kernels", partial(choose_kernels, policy="", factory=broken)
    )
    slow = Verdict(0, "it takes 2.00 times its reference's time")
    pipeline = Pipeline("moe_decode_down", (mx.bfloat16, 2880))
    Verdicts(this_machine(), tmp_path).add({pipeline: slow})
    found = choice.found_here()
    assert list(found) == list(MODULES)
    assert found["decode_qkv"].startswith("decode_qkv: [metal::Device] Unable to build")
    assert found["moe_down"].startswith(f"moe_decode_down: {slow.why}; moe_decode_down_each: [")


def test_our_own_faults_are_no_reason_to_fall_back() -> None:
    def ours(**_: Any) -> Callable[..., list[mx.array]]:
        def run(**_: Any) -> list[mx.array]:
            raise TypeError("a fault in a launch")

        return run

    kernels = choose_kernels(policy="", factory=ours, verdicts=nowhere())
    name, arguments = next(calls(mx.float32))
    with pytest.raises(TypeError, match="a fault in a launch"):
        getattr(kernels, name)(*arguments)


def test_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_KERNELS", "reference")
    assert choose_kernels(factory=broken) == Kernels()
    monkeypatch.setenv("GPTOSS_KERNELS", "metal")
    with pytest.raises(KernelError, match="MLX computes on the CPU here"):
        choose_kernels()
    monkeypatch.setenv("GPTOSS_KERNELS", "cuda")
    with pytest.raises(KernelError, match='GPTOSS_KERNELS is "cuda"; it may be "metal" or'):
        choose_kernels()


@pytest.mark.parametrize("version", ["0.31.2", "0.9", "0.31.0.dev20260101"])
def test_an_older_mlx_is_refused_in_one_line(version: str) -> None:
    line = f"MLX {version} is installed, and 0.32 or newer is needed: pip install -U mlx"
    with pytest.raises(KernelError, match=f"^{line}$"):
        require_mlx(version)


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0.dev20261101", "1.0", mlx_version()])
def test_a_newer_mlx_is_taken(version: str) -> None:
    require_mlx(version)


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
