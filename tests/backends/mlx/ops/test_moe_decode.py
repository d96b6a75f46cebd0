"""The decode kernels of the experts, run by the emulator, against float64 by the definition."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_mlx.backends.mlx.ops import moe_down, moe_gate_up
from gptoss_mlx.backends.mlx.ops.metal import Factory
from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection
from gptoss_mlx.backends.mlx.ops.routing import Routing
from tests.backends.mlx.ops.banks import Bank, bank, choices
from tests.support.comparison import worst_row
from tests.support.metal_emulator import Emulator, available
from tests.support.numpy_gpt_oss import swiglu

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "")

LIMIT = 7.0
ORDERS = ["forward", "reverse", "random"]
EXACT = {
    mx.float32: 1e-6,
    mx.bfloat16: 4e-3,
}  # relative L2 of a token's output; of few rows it would measure cancellation
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A bank, what visits it, and the same as float64."""

    weights: Bank
    x: mx.array
    bias: mx.array
    chosen: NDArray[np.uint32]
    slots: NDArray[np.uint32]


def case(rows: int, inputs: int, tokens: int, k: int, dtype: mx.Dtype, *, down: bool) -> Case:
    rng = np.random.default_rng(rows * inputs + tokens)
    experts = k + 2
    chosen = choices(rng, tokens, k, experts)
    slot_of = rng.permutation(experts).astype(np.uint32)
    shape = (tokens, k, inputs) if down else (tokens, inputs)
    x, bias = (rng.standard_normal(s, np.float32) for s in (shape, (experts, rows)))
    return Case(
        bank(rng, experts, rows, inputs),
        mx.array(x).astype(dtype),
        mx.array(bias).astype(dtype),
        chosen,
        slot_of[chosen],
    )


def exact(a: mx.array) -> Values:
    return np.array(a.astype(mx.float32)).astype(np.float64)


def gate_up_error(c: Case, factory: Factory) -> float:
    """The worst token's relative L2."""
    routing = Routing(mx.array(c.slots), mx.array(c.chosen), mx.ones(c.slots.shape))
    y = moe_gate_up.metal(factory)(c.x, c.weights.projection(c.bias), routing, LIMIT)
    assert y.dtype == c.x.dtype
    h = np.einsum("ti,tkoi->tko", exact(c.x), c.weights.matrices[c.slots])
    h += exact(c.bias)[c.chosen]
    expected = swiglu(h[..., 0::2], h[..., 1::2], LIMIT)
    assert y.shape == expected.shape
    return worst_row(exact(y).reshape(len(h), -1), expected.reshape(len(h), -1))


def down_error(c: Case, factory: Factory) -> float:
    """The worst token's relative L2."""
    weights = mx.softmax(mx.arange(c.chosen.size).reshape(c.chosen.shape) / 3.0, axis=-1)
    weights = weights.astype(c.x.dtype)
    routing = Routing(mx.array(c.slots), mx.array(c.chosen), weights)
    y = moe_down.metal(factory)(c.x, c.weights.projection(c.bias), routing)
    assert y.dtype == c.x.dtype
    each = np.einsum("tki,tkoi->tko", exact(c.x), c.weights.matrices[c.slots])
    expected = np.einsum("tk,tko->to", exact(weights), each + exact(c.bias)[c.chosen])
    assert y.shape == expected.shape
    return worst_row(exact(y), expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(
    ("inputs", "rows"), [(64, 78), (96, 74), (2880, 70), (4096, 66), (4160, 66)]
)
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
def test_gate_up(inputs: int, rows: int, tokens: int, dtype: mx.Dtype, order: str) -> None:
    emulator = Emulator(check=True, order=order)
    c = case(rows, inputs, tokens, 4 if inputs < 100 else 1, dtype, down=False)
    assert gate_up_error(c, emulator.metal_kernel) <= EXACT[dtype]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(
    ("inputs", "rows"), [(64, 39), (96, 37), (2880, 35), (4096, 33), (4160, 33)]
)
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
def test_down(inputs: int, rows: int, tokens: int, dtype: mx.Dtype, order: str) -> None:
    emulator = Emulator(check=True, order=order)
    c = case(rows, inputs, tokens, 4 if inputs < 100 else 2, dtype, down=True)
    assert down_error(c, emulator.metal_kernel) <= EXACT[dtype]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_rows_of_several_threadgroups(dtype: mx.Dtype) -> None:
    factory = Emulator(check=True, order="random").metal_kernel
    up = case(2 * moe_gate_up.ROWS + 34, 128, 2, 2, dtype, down=False)
    assert gate_up_error(up, factory) <= EXACT[dtype]
    down = case(2 * moe_down.ROWS + 17, 128, 2, 2, dtype, down=True)
    assert down_error(down, factory) <= EXACT[dtype]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("half", ["gate_up", "down"])
def test_tokens_get_the_same_bits_alone(half: str, dtype: mx.Dtype) -> None:
    """Of three experts, which one, two and all of five tokens visit."""
    factory, down = Emulator(check=False).metal_kernel, half == "down"
    c = case(74, 96, 5, 2, dtype, down=down)
    slots = mx.array([[0, 3], [3, 1], [2, 3], [3, 0], [1, 3]], mx.uint32)
    weights = mx.softmax(mx.arange(10).reshape(5, 2) / 3.0, axis=-1).astype(dtype)
    projection = c.weights.projection(c.bias)
    residual = mx.ones((5, 74), dtype)

    def run(tokens: slice) -> mx.array:
        routing = Routing(slots[tokens], slots[tokens], weights[tokens])
        if down:
            return moe_down.metal(factory)(c.x[tokens], projection, routing, residual[tokens])
        return moe_gate_up.metal(factory)(c.x[tokens], projection, routing, LIMIT)

    together = run(slice(5))
    for i in range(5):
        assert mx.array_equal(run(slice(i, i + 1))[0], together[i])


@pytest.mark.parametrize("half", ["gate_up", "down"])
def test_an_experts_weights_are_read_once_for_two_tokens(half: str) -> None:
    emulator, down = Emulator(trace=True), half == "down"
    c = case(64, 96, 4, 2, mx.bfloat16, down=down)
    slots = mx.array([[0, 3], [3, 1], [0, 2], [3, 1]], mx.uint32)  # 2, 2, 1 and 3 visits
    routing = Routing(slots, slots, mx.ones(slots.shape, mx.bfloat16))
    projection = c.weights.projection(c.bias)
    if down:
        moe_down.metal(emulator.metal_kernel)(c.x, projection, routing)
    else:
        moe_gate_up.metal(emulator.metal_kernel)(c.x, projection, routing, LIMIT)
    traffic = emulator.launches[0].traffic
    matrix = 64 * 96 // 2  # bytes
    assert traffic["blocks"].touched_read == 4 * matrix
    assert traffic["blocks"].distinct_bytes == (1 + 1 + 1 + 2) * matrix


def test_fewer_rows_to_a_threadgroup_where_cores_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe_gate_up, "many_cores", lambda: True)
    emulator = Emulator(check=True, order="random")
    c = case(2 * moe_gate_up.MANY_CORES_ROWS + 2, 128, 2, 2, mx.float32, down=False)
    assert gate_up_error(c, emulator.metal_kernel) <= EXACT[mx.float32]
    assert emulator.launches[-1].threadgroups == 3 * 2 * 2


@pytest.mark.slow
def test_released_sizes() -> None:
    dtype, factory = mx.bfloat16, Emulator(check=True).metal_kernel
    up, down = (case(rows, 2880, 1, 1, dtype, down=rows == 2880) for rows in (5760, 2880))
    assert gate_up_error(up, factory) <= EXACT[dtype]
    assert down_error(down, factory) <= EXACT[dtype]


def test_every_scale_a_file_may_have() -> None:
    # From 2^-127, which float32 holds only as a subnormal, to 2^127: each alone in a row.
    exponents = np.arange(255, dtype=np.uint8)
    codes = np.full((1, 255, 16), 0x22, np.uint8)  # 1.0 everywhere
    x = np.zeros((1, 1, 32), np.float32)
    x[..., 5] = 0.25
    one = mx.zeros((1, 1), mx.uint32)
    scales = mx.array(exponents.reshape(1, 255, 1))
    y = moe_down.metal(Emulator(check=True).metal_kernel)(
        mx.array(x),
        Projection(mx.array(codes.view("<u4")), scales, mx.zeros((1, 255))),
        Routing(one, one, mx.ones((1, 1))),
    )
    expected = 2.0 ** (exponents.astype(np.float64) - 129)
    np.testing.assert_array_equal(exact(y)[0, 2:], expected[2:])
    # Below 2^-126 a GPU may flush to zero.
    assert set(exact(y)[0, :2]) <= {0.0, *expected[:2]}


def test_all_codes_of_all_places_of_a_word() -> None:
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    table = np.array([*values, *(-v for v in values)])
    emulator = Emulator(check=True)
    for place, shift in itertools.product(range(32), [0, 9]):
        codes = np.full((16, 32), shift)
        codes[:, place] = range(16)
        packed = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8).reshape(1, 16, 16)
        x = np.zeros((1, 1, 32), np.float32)
        x[..., place] = 1
        one = mx.zeros((1, 1), mx.uint32)
        scales = mx.full((1, 16, 1), 127, mx.uint8)
        y = moe_down.metal(emulator.metal_kernel)(
            mx.array(x),
            Projection(mx.array(packed.view("<u4")), scales, mx.zeros((1, 16))),
            Routing(one, one, mx.ones((1, 1))),
        )
        np.testing.assert_array_equal(exact(y)[0], table)
