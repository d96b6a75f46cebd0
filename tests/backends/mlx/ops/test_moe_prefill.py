"""The experts' prefill kernels, emulated, against float64 dequantization by the definition."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.ops import moe_down, moe_gate_up
from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection
from gptoss_mlx.backends.mlx.ops.routing import Routing
from tests.backends.mlx.ops.banks import Generator, bank, normal
from tests.support.metal_emulator import Emulator, available
from tests.support.numpy_gpt_oss import swiglu
from tests.support.released_tensors import Values

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "")

LIMIT = 7.0
EXACT = {mx.float32: 1e-6, mx.bfloat16: 4e-3}  # relative L2
SMALL = [
    (32, 6, [1] * 12),
    (64, 74, [0, 33, 1, 0, 8, 0]),
    (96, 70, [40, 0, 7]),
    (224, 300, [0, 3, 6]),
    (128, 2, [9]),
]
"""Inputs, outputs, tokens of each slot: one each, none, more than a tile; odd halves of outputs,
fewer and more than a threadgroup's; parts of 1, 2, 3, 4 and 4 + 3 groups."""


@dataclass(frozen=True)
class Call:
    """What both kernels are called with, and x times the matrices plus the bias in float64."""

    x: mx.array
    projection: Projection
    routing: Routing
    products: Values


def call(rng: Generator, inputs: int, outputs: int, counts: list[int], dtype: mx.Dtype) -> Call:
    """Tokens sorted by slot; matrices lie by slot, biases by expert."""
    slots = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)[:, None]
    experts = rng.permutation(len(counts) + 2).astype(np.uint32)[slots]
    biases = int(experts.max()) + 1  # the last one is read up to its end
    matrices = bank(rng, len(counts), outputs, inputs)
    x, bias = (
        normal(rng, *shape)[0].astype(dtype) for shape in [(len(slots), inputs), (biases, outputs)]
    )
    products = np.einsum("ti,toi->to", exactly(x), matrices.matrices[slots[:, 0]])
    weights = normal(rng, len(slots), 1)[0].astype(dtype)
    routing = Routing(mx.array(slots), mx.array(experts), weights, grouped=True)
    products += exactly(bias)[experts[:, 0]]
    return Call(x, matrices.projection(bias), routing, products)


def exactly(a: mx.array) -> Values:
    return np.array(a.astype(mx.float32)).astype(np.float64)


def off(found: mx.array, exact: NDArray[np.float64]) -> float:
    return float(
        np.linalg.norm(exactly(found).reshape(exact.shape) - exact) / np.linalg.norm(exact)
    )


def gate_up(emulator: Emulator, c: Call) -> float:
    """How far the first half is off."""
    run = moe_gate_up.metal(emulator.metal_kernel)
    found = run(c.x, c.projection, c.routing, LIMIT)
    tokens, outputs = c.products.shape
    assert (found.shape, found.dtype) == ((tokens, 1, outputs // 2), c.x.dtype)
    return off(found, swiglu(c.products[:, 0::2], c.products[:, 1::2], LIMIT))


def down(emulator: Emulator, c: Call) -> float:
    """How far the second half is off."""
    run = moe_down.metal(emulator.metal_kernel)
    found = run(c.x[:, None], c.projection, c.routing)
    assert (found.shape, found.dtype) == (c.products.shape, c.x.dtype)
    return off(found, c.products * exactly(c.routing.weights))


@pytest.mark.parametrize(
    ("inputs", "outputs", "counts", "dtype"),
    [*((*size, mx.float32) for size in SMALL), *((*size, mx.bfloat16) for size in SMALL[1:4:2])],
)
def test_every_token_meets_its_slots_matrix(
    inputs: int, outputs: int, counts: list[int], dtype: mx.Dtype
) -> None:
    rng = np.random.default_rng(inputs)
    c = call(rng, inputs, outputs, counts, dtype)
    emulator = Emulator(check=True, order="random", seed=inputs)
    assert gate_up(emulator, c) < EXACT[dtype]
    assert down(emulator, c) < EXACT[dtype]


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_in_every_order(order: str) -> None:
    rng = np.random.default_rng(5)
    c = call(rng, 224, 38, [11, 0, 35], mx.float32)
    emulator = Emulator(check=True, order=order)
    assert gate_up(emulator, c) < EXACT[mx.float32]
    assert down(emulator, c) < EXACT[mx.float32]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_as_many_inputs_as_the_model_has(dtype: mx.Dtype) -> None:
    rng = np.random.default_rng(6)
    c = call(rng, 2880, 64, [9, 2, 0, 21], dtype)
    emulator = Emulator(check=False, order="random", seed=1)
    assert gate_up(emulator, c) < EXACT[dtype]
    assert down(emulator, c) < EXACT[dtype]


def test_scales_at_the_ends_of_their_range() -> None:
    # 2^-127, which float32 has no normal number for, up to 2^100.
    rng = np.random.default_rng(7)
    x, blocks = mx.ones((9, 32)), mx.array(rng.integers(0, 2**32, (1, 12, 4), np.uint32))
    codes = np.array(blocks).view(np.uint8)
    exponents = np.array([0, 1, 14, 15, 60, 100, 127, 150, 200, 227, 13, 112], np.uint8)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float64)
    signed = np.concatenate([table, -table])
    sums = (signed[codes & 15] + signed[codes >> 4]).sum(axis=-1)[0]
    exact = np.tile(sums * 2.0 ** (exponents.astype(np.float64) - 127), (9, 1))
    first = mx.zeros((9, 1), mx.uint32)
    found = moe_down.metal(Emulator().metal_kernel)(
        x[:, None],
        Projection(blocks, mx.array(exponents.reshape(1, 12, 1)), mx.zeros((1, 12))),
        Routing(first, first, mx.ones((9, 1)), grouped=True),
    )
    np.testing.assert_allclose(exactly(found), exact, rtol=1e-6, atol=2.0**-125)


def test_what_the_prefill_kernels_do_not_take_is_computed_all_the_same() -> None:
    rng = np.random.default_rng(8)
    c = call(rng, 32, 2, [9], mx.float32)
    blocks, scales, bias = c.projection
    tiny = Projection(blocks[:, :2], scales[:, :2], bias)
    run = moe_gate_up.metal(refused)
    for k in (1, 2):
        slots = mx.zeros((9, k), mx.uint32)
        arguments = c.x, tiny, Routing(slots, slots, mx.ones((9, k)), grouped=True), LIMIT
        assert mx.array_equal(run(*arguments), moe_gate_up.moe_gate_up(*arguments))


def refused(**_: object) -> object:
    def run(**_: object) -> list[mx.array]:
        raise AssertionError("a kernel was launched")

    return run
